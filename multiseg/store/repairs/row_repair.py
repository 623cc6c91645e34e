"""Restoring the rows of a database: coordinates from records, records from coordinates, and states from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from jaxtyping import UInt8

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.checks.chunks import Index, chunks_of, decoded_blocks
from multiseg.store.checks.fault_collector import Faults
from multiseg.store.columns import are_equal
from multiseg.store.coordinate_chunks import empty_chunk, encode_chunk
from multiseg.store.damage import UNREADABLE
from multiseg.store.hierarchy import open_group
from multiseg.store.records import FileMark, Record, parse_record, record_of_row, record_text
from multiseg.store.repairs.place import Place
from multiseg.store.rows import mark_of, row_values
from multiseg.store.shard_names import key_of, shards_named

WHY = "the states of the rows are lost, and "


@dataclass(eq=False)
class Rows:
    """The rows of a database, as far as they can be read. `bad`: the damaged or missing chunks of each coordinate."""

    name: str
    arrays: DatabaseArrays
    status: Any
    has_status: bool
    columns: dict[str, Any] = field(default_factory=dict)
    bad: dict[str, set[Index]] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)

    @property
    def num(self) -> int:
        return len(self.status)

    @property
    def in_use(self) -> list[int]:
        """The committed and superseded rows."""
        return [int(row) for row in np.flatnonzero(self.status != schema.PENDING)]

    def is_bad(self, row: int) -> bool:
        """Whether any coordinate of the row cannot be read."""
        first = {array: row // self.arrays[array].chunks[0] for array in self.bad}
        return any(index[0] == first[array] for array, indices in self.bad.items() for index in indices)

    def recorded_values(self, row: int) -> dict[str, Any] | None:
        """The row of each coordinate according to the record; None without a record that fits the database."""
        if row not in self.records:
            return None
        try:
            values = row_values(self.arrays, self.records[row])
        except (StoreError, *UNREADABLE):
            return None
        return values if self.status[row] == schema.COMMITTED else values | {"case": ""}


def repair_rows(place: Place, name: str, on_row: Callable[[], None]) -> Rows:
    """Restore and return the rows of a database, whose metadata must be sound; `on_row` is called for each."""
    arrays = DatabaseArrays(open_group(place.store, name))
    _repair_axis_names(place, arrays)
    rows = _read(place, name, arrays, on_row)
    _fit_extent(arrays, rows)
    if not rows.has_status:
        records = {row: rows.records.get(row) or _record_of(place, rows, row) for row in range(rows.num)}
        rows.status = _states_of(place, rows, records)
    lost = [row for row in rows.in_use if rows.recorded_values(row) is None and rows.is_bad(row)]
    for row in lost:
        if rows.status[row] == schema.COMMITTED:
            why = "its record and other coordinates are both damaged"
            place.log.lost(name, _case(rows, row), f"{name}/record/c/{row}", why)
        rows.status[row] = schema.SUPERSEDED
    if lost and rows.has_status:  # first, since the next steps write nothing to these rows
        arrays.write("status", rows.status)
    _repair_records(place, rows, lost)
    _repair_coordinates(place, rows)
    if not rows.has_status:
        _replace_chunk(place, arrays["status"], (0,), rows.status, "the states of the rows, from the records")
    arrays.keep_copy()
    _report_missing_shards(place, rows)
    _set_foreign_arrays_aside(place, rows)
    return rows


def _states_of(place: Place, rows: Rows, records: Mapping[int, Record | None]) -> UInt8[np.ndarray, " case"]:
    """The states of all rows. Of each case the newest row with all files of its record is committed; older ones with
    all files are superseded.

    A row that may have been committed, but cannot be told from one of a dead writer, is reported as lost.
    """
    name, names = rows.name, [str(case) for case in rows.columns["case"]]
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


def _repair_axis_names(place: Place, arrays: DatabaseArrays) -> None:
    """Restore the names along the axes from the attributes."""
    for axis, attribute in schema.NAMED_AXES.items():
        names, array = list(arrays.group.attrs[attribute]), arrays[axis]
        if array.shape[0] < len(names):
            array.resize((len(names),))
        for block in decoded_blocks(array, Faults()):
            (part,) = block.region
            stored, wanted = block.values, names[part]
            if (stored is not None and list(map(str, stored[: len(wanted)])) == wanted) or not wanted:
                continue
            values = np.full(part.stop - part.start, "", dtype=object)
            values[: len(wanted)] = wanted
            what = f"the names along the axis {axis!r}, from the attributes"
            _replace_chunk(place, array, block.index, values, what)


def _read(place: Place, name: str, arrays: DatabaseArrays, on_row: Callable[[], None]) -> Rows:
    try:
        has_status = bool(place.read(f"{name}/status/c/0"))
        status = arrays.read("status")
        has_status &= set(status.tolist()) <= {schema.PENDING, schema.COMMITTED, schema.SUPERSEDED}
    except UNREADABLE:
        has_status, status = False, np.zeros(arrays.num_rows, dtype=np.uint8)
    rows = Rows(name, arrays, status, has_status)
    if arrays["record"].shape[0] < rows.num:  # of an older copy of the store
        arrays["record"].resize((rows.num,))
    for row in range(rows.num):
        on_row()
        try:
            rows.records[row] = parse_record(str(arrays.row("record", row)), "")
        except UNREADABLE:
            continue
    skipped = {"status", "record", *schema.NAMED_AXES, *schema.BY_CASE}
    for array in arrays.coordinates:
        if array not in skipped:
            _read_column(rows, array)
    return rows


def _read_column(rows: Rows, name: str) -> None:
    array = rows.arrays[name]
    if array.shape[0] < rows.num:  # a writer died while it resized the arrays
        array.resize((rows.num, *array.shape[1:]))
    values = np.full(array.shape, array.fill_value, dtype=object if array.dtype.kind in "TO" else array.dtype)
    for block in decoded_blocks(array, Faults()):
        if block.values is None:
            rows.bad.setdefault(name, set()).add(block.index)
        else:
            values[block.region] = block.values
    rows.columns[name] = values


def _fit_extent(arrays: DatabaseArrays, rows: Rows) -> None:
    """Make both big arrays large enough for all cases, in case their metadata were lost."""
    for name in ("image", "label"):
        array = arrays[name]
        extents = [record.extent for record in rows.records.values()]
        voxels = [max(lengths) for lengths in zip(array.shape[2:], (1, 1, 1), *extents, strict=True)]
        shape = (max(array.shape[0], rows.num), array.shape[1], *voxels)
        if shape != array.shape:
            array.resize(shape)


def _case(rows: Rows, row: int) -> str:
    if row in rows.records:
        return rows.records[row].case
    names = rows.columns.get("case")
    return str(names[row]) if names is not None and str(names[row]) else f"row {row}"


def _repair_records(place: Place, rows: Rows, lost: Sequence[int]) -> None:
    """Restore records that are lost, or older than the coordinates, from the coordinates."""
    for row in rows.in_use:
        key, recorded = f"{rows.name}/record/c/{row}", rows.recorded_values(row)
        if row in lost:
            place.set_aside(key)
            rows.arrays.write_row(row, {"record": ""})
            rows.records.pop(row, None)
            continue
        if recorded is not None and (rows.is_bad(row) or rows.columns["revision"][row] <= rows.records[row].revision):
            continue  # the coordinates are not newer
        record = _record_of(place, rows, row)
        if record is None:
            continue
        place.set_aside(key)
        rows.arrays.write_row(row, {"record": record_text(record)})
        rows.records[row] = record
        place.log.repaired(key, f"the record of {_case(rows, row)}, from the coordinates")


def _record_of(place: Place, rows: Rows, row: int) -> Record | None:
    """The record of a row, from its coordinates; None if they are incomplete."""
    coordinates = {name: values[row] for name, values in rows.columns.items() if len(values) > row}
    if rows.is_bad(row) or not str(coordinates.get("source_sha256", "")) or not str(coordinates.get("shards", "")):
        return None
    attributes = rows.arrays.group.attrs.asdict()
    modalities, annotations = (list(attributes[attribute]) for attribute in schema.NAMED_AXES.values())
    files = {
        f"{array}/{position}": _mark(place.read(f"{rows.name}/{array}/c/{row}/{position}"))
        for array in schema.BY_CASE
        for position in sorted(shards_named(str(coordinates["shards"]), array))
    }
    coordinates["revision"] = abs(int(coordinates["revision"]))
    return record_of_row(coordinates, modalities, annotations, rows.arrays.columns, files)


def _mark(data: bytes | None) -> FileMark:
    return FileMark(0, "") if data is None else mark_of(data)


def _repair_coordinates(place: Place, rows: Rows) -> None:
    """Restore damaged chunks, and rows that differ from their records, from the records."""
    recorded = {row: values for row in rows.in_use if (values := rows.recorded_values(row)) is not None}
    for name, values in rows.columns.items():
        array, changed = rows.arrays[name], set(rows.bad.get(name, ()))
        regions = dict(chunks_of(array))
        for row, recorded_row in recorded.items():
            value = np.asarray(recorded_row[name], dtype=values.dtype)
            target = (row, *map(slice, value.shape))
            if not are_equal(values[target], value):
                values[target] = value[()]  # a text, not an array of one
                changed |= {index for index in regions if index[0] == row // array.chunks[0]}
        for index in sorted(changed):
            chunk_rows = regions[index][0]
            if any(chunk_rows.start <= row < chunk_rows.stop for row in rows.in_use):
                what = f"{name} of the rows from {chunk_rows.start} on, from the records"
                _replace_chunk(place, array, index, values[regions[index]], what)


def _replace_chunk(place: Place, array: zarr.Array, index: Index, values: Any, what: str) -> None:
    """Write a whole chunk without reading the old one, which may be damaged. A copy of that is kept."""
    chunk = empty_chunk(array)
    chunk[tuple(map(slice, np.shape(values)))] = values
    place.replace(f"{array.path}/{array.metadata.encode_chunk_key(index)}", encode_chunk(array, chunk), what)


def _report_missing_shards(place: Place, rows: Rows) -> None:
    """Report missing files of voxels as lost: they are stored only once, so the case must be ingested again."""
    existing: Mapping[str, set[str]] = {name: set(place.keys(f"{rows.name}/{name}/c")) for name in ("image", "label")}
    for row in np.flatnonzero(rows.status == schema.COMMITTED).tolist():
        for name in existing:
            for position in sorted(shards_named(str(rows.columns["shards"][row]), name)):
                key = f"{rows.name}/{name}/c/{row}/{position}"
                if key not in existing[name]:
                    place.log.lost(rows.name, _case(rows, row), key, "the file is missing")


def _set_foreign_arrays_aside(place: Place, rows: Rows) -> None:
    """Move arrays of other programs beside the store: after the next ingest xarray could not open the database."""
    known = {*rows.arrays.coordinates, "image", "label"}
    for name in place.names(rows.name):
        folder = f"{rows.name}/{name}"
        if name in known or name.startswith(".") or place.read(folder) is not None:  # a plain file does no harm
            continue
        for key in place.keys(folder):
            place.set_aside(key)
        place.delete_folder(folder)
        place.log.repaired(folder, "not one of the database's arrays: moved beside the store")
