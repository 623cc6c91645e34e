"""Restoring the lost states of a database's rows from records and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from multiseg.store import schema
from multiseg.store.records import Record
from multiseg.store.repairs.place import Place
from multiseg.store.rows import mark_of
from multiseg.store.shard_names import key_of

WHY = "the states of the rows are lost, and "


def states_of(
    place: Place, name: str, records: Mapping[int, Record], names: Sequence[str]
) -> UInt8[np.ndarray, " case"]:
    """The states of all rows. Of each case the newest row with all files of its record is committed; older ones with
    all files are superseded.

    A row that may have been committed, but cannot be told from one of a dead writer, is reported as lost.

    Args:
        names: for each row the name of its case in the coordinates; "" if it has none.
    """
    states = np.full(len(names), schema.PENDING, dtype=np.uint8)
    by_case: dict[str, list[tuple[int, int, str]]] = {}
    for row, case_name in enumerate(names):
        record = records.get(row)
        if record is not None and record.case and record.shards:
            wrong_file = _first_wrong_file(place, name, row, record)
            by_case.setdefault(record.case, []).append((abs(record.revision), row, wrong_file))
        elif case_name or place.keys(f"{name}/image/c/{row}"):
            why = f"{WHY}so is the record of this row"
            place.log.lost(name, case_name or f"row {row}", f"{name}/record/c/{row}", why)
    for case, versions in by_case.items():
        complete_rows = [row for _revision, row, wrong_file in sorted(versions) if not wrong_file]
        states[complete_rows] = schema.SUPERSEDED
        states[complete_rows[-1:]] = schema.COMMITTED
        *_, (_revision, _row, wrong_file) = sorted(versions)
        if wrong_file:
            older = "; an older version of the case is valid now" if complete_rows else ""
            place.log.lost(name, case, wrong_file, f"{WHY}this file is not the one in the record{older}")
    return states


def _first_wrong_file(place: Place, name: str, row: int, record: Record) -> str:
    """The first file that differs from the record, or "". Sampled voxels are not checked: they can be restored."""
    for shard, mark in record.shards.items():
        key = key_of(name, row, shard)
        if not shard.startswith("foreground/") and mark_of(place.read(key) or b"") != mark:
            return key
    return ""
