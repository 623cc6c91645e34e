"""Checking that the record of a case agrees with its coordinates and its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.checks.chunks import decoded_blocks
from multiseg.store.checks.fault_collector import REPAIR, Faults, advice
from multiseg.store.checks.layout import Layout
from multiseg.store.columns import are_equal
from multiseg.store.copies import continues, difference_of, differences, sound_copy
from multiseg.store.damage import UNREADABLE, one_line
from multiseg.store.hierarchy import read_object
from multiseg.store.records import DESCRIPTION, FileMark, Record, coordinates_of, parse_record
from multiseg.store.rows import mark_of
from multiseg.store.shard_names import key_of, shards_named

EITHER = f"One of them is damaged or out of date. {REPAIR}"


def verify_record(layout: Layout, row: int, coordinates: Mapping[str, Any], faults: Faults) -> None:
    """Compare a committed row's coordinates and files with its record."""
    record = read_record(layout, row, faults)
    marks = {} if record is None else record.shards
    text = layout.expected.shards.get(row, "")
    named = {f"{array}/{position}" for array in schema.BY_CASE for position in shards_named(text, array)}
    for key in sorted(named | marks.keys()):
        _check_file(layout, key_of(layout.name, row, key), marks.get(key), faults)
    if record is None:
        return
    changes = [*DESCRIPTION, "revision", *_columns(layout)] if coordinates.get("revision", 0) < 0 else []
    if changes:
        message = "a writer died while it wrote the metadata of the case. The next ingest completes them."
        faults.note("WRITER_DIED", f"{layout.name}/revision", message)
    _compare(layout, row, record, {name: value for name, value in coordinates.items() if name not in changes}, faults)


def read_record(layout: Layout, row: int, faults: Faults, is_committed: bool = True) -> Record | None:
    """The record of a row; if it is damaged or missing, None, and the fault is reported.

    Removing a case empties its record: in a row without a committed case that is no fault.
    """
    array = layout.arrays.get("record")
    if array is None or row >= array.shape[0]:
        return None
    before = len(faults.found)
    (block,) = decoded_blocks(array, faults, row)
    if block.is_missing:
        faults.damage("MISSING_FILE", block.key, "the record of the case is missing")
    if block.values is None or len(faults.found) > before:
        return None
    text = str(block.values[0])
    if not text and not is_committed:
        return None
    try:
        return parse_record(text, block.key)
    except StoreError as error:
        faults.damage("BAD_RECORD", block.key, one_line(error))
        return None


def _columns(layout: Layout) -> dict[str, Any]:
    """The participants' columns, with their value for a case that has none."""
    return {name: array.fill_value for name, array in layout.arrays.items() if name not in schema.RESERVED}


def _compare(layout: Layout, row: int, record: Record, coordinates: Mapping[str, Any], faults: Faults) -> None:
    lengths = layout.expected.lengths
    modalities = layout.modalities[: lengths["modality"]]
    annotations = layout.annotations[: lengths["annotation"]]
    try:
        recorded_coordinates = coordinates_of(record, modalities, annotations, _columns(layout), lengths["structure"])
    except (StoreError, *UNREADABLE) as error:
        faults.damage("BAD_RECORD", f"{layout.name}/record/c/{row}", one_line(error))
        return
    for name in sorted(recorded_coordinates.keys() & coordinates.keys()):
        stored, recorded = np.asarray(coordinates[name]), np.asarray(recorded_coordinates[name])
        # Where the axes have grown since, the record has fewer values.
        comparable = stored[tuple(map(slice, recorded.shape))] if stored.shape else stored
        if not are_equal(comparable, recorded):
            problem = f"{name} of the case is {_short(stored)}, but in its record it is {_short(recorded)}"
            faults.damage("NOT_AS_RECORDED", _file(layout, name, row), problem, EITHER)


def _short(value: Any) -> str:
    text = " ".join(str(value.tolist()).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _file(layout: Layout, name: str, row: int) -> str:
    array = layout.arrays[name]
    return f"{layout.name}/{name}/c/{'/'.join(['0'] * array.ndim)}".replace("/c/0", f"/c/{row // array.chunks[0]}", 1)


def _check_file(layout: Layout, key: str, mark: FileMark | None, faults: Faults) -> None:
    """Check that a file exists and is the one in the record. Files with an earlier finding are skipped."""
    if key in {finding.file for finding in faults.found}:
        return
    to_do = advice(key.split("/")[1])
    try:
        store = next(iter(layout.arrays.values())).store_path.store
        data = read_object(store, key, RangeByteRequest(0, 1) if mark is None else None)
    except UNREADABLE as error:
        faults.damage("DAMAGED_CHUNK", key, f"the file cannot be read: {one_line(error)}", to_do)
        return
    if data is None:
        faults.damage("MISSING_FILE", key, "the file is missing", to_do)
    elif mark is not None and mark_of(data) != mark:
        problem = f"the file ({len(data)} bytes) is not the one in the record ({mark.num_bytes} bytes)"
        faults.damage("NOT_AS_RECORDED", key, problem, to_do)


def verify_copy(layout: Layout, group: zarr.Group, faults: Faults) -> None:
    """Check the attributes of a database against their second copy in `record`."""
    attributes = group.attrs.asdict()
    for axis, names in (("modality", layout.modalities), ("annotation", layout.annotations)):
        listed = attributes.get(schema.NAMED_AXES[axis])
        if axis in layout.columns and (not isinstance(listed, list) or names[: len(listed)] != listed):
            problem = f"the names {', '.join(names)} are not those in the attributes ({listed})"
            faults.damage("BAD_NAME", f"{layout.name}/{axis}/c/0", problem, EITHER)
    if "record" not in layout.arrays:
        return
    for file, problem in differences(layout.name, attributes, layout.arrays):
        faults.damage("COPIES_DIFFER", file, problem, EITHER)
    copied = (sound_copy(layout.arrays["record"].attrs.asdict()) or {"attributes": attributes})["attributes"]
    problem = difference_of(copied, attributes)
    if problem and (continues(copied, attributes) or continues(attributes, copied)):
        faults.warning("COPIES_DIFFER", f"{layout.name}/zarr.json", f"{problem}. {EITHER}")
