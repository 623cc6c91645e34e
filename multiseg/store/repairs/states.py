"""The states of a database's rows when they are lost, from records and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from multiseg.store import schema
from multiseg.store.records import Record
from multiseg.store.repairs.place import Place
from multiseg.store.repairs.repair_report import Log
from multiseg.store.rows import mark_of

WHY = "the states of the rows are lost, and "


def states_of(
    place: Place, name: str, records: Mapping[int, Record], names: Sequence[str], log: Log
) -> UInt8[np.ndarray, " case"]:
    """Of each case the newest row whose voxels are all those of its record is data, and older ones are superseded.

    A row that may be one of data, but cannot be told from what a dead writer left, is named as lost.

    Args:
        names: for each row the name of its case as the coordinates have it, "" where they say nothing.
    """
    states = np.full(len(names), schema.PENDING, dtype=np.uint8)
    by_case: dict[str, list[tuple[int, int, str]]] = {}
    for row, known in enumerate(names):
        record = records.get(row)
        if record is not None and record.case and record.shards:
            wrong = _first_other(place, name, row, record)
            by_case.setdefault(record.case, []).append((abs(record.revision), row, wrong))
        elif known or place.keys(f"{name}/image/c/{row}"):
            log.lost(name, known or f"row {row}", f"{name}/record/c/{row}", f"{WHY}so is the record of this one")
    for case, versions in by_case.items():
        whole = [row for _revision, row, wrong in sorted(versions) if not wrong]
        states[whole] = schema.SUPERSEDED
        states[whole[-1:]] = schema.COMMITTED
        *_, (_revision, _row, wrong) = sorted(versions)
        if wrong:
            older = "; an older version of the case is valid now" if whole else ""
            log.lost(name, case, wrong, f"{WHY}this file is not the one of the record{older}")
    return states


def _first_other(place: Place, name: str, row: int, record: Record) -> str:
    """The first file of voxels that is not the one of the record; sampled voxels can be made again."""
    for own, mark in record.shards.items():
        array, _, rest = own.partition("/")
        key = f"{name}/{array}/c/{row}/{rest}"
        if array != "foreground" and mark_of(place.read(key) or b"") != mark:
            return key
    return ""
