"""Restoring the rows of a database: coordinates from records, records from coordinates, and states from both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, TypeAlias

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.arrays import WRITE_ALL, DatabaseArrays
from multiseg.store.damage import UNREADABLE
from multiseg.store.records import FileMark, Record, coordinates_of, parse_record, record_of_row, record_text
from multiseg.store.repairs.place import Place
from multiseg.store.repairs.repair_report import Log
from multiseg.store.repairs.states import states_of
from multiseg.store.rows import mark_of
from multiseg.store.shard_names import shards_named

Index: TypeAlias = tuple[int, ...]


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

    def is_bad(self, row: int) -> bool:
        """Whether any coordinate of the row cannot be read."""
        return any(
            index[0] == row // self.arrays[array].chunks[0] for array, indices in self.bad.items() for index in indices
        )

    def recorded_values(self, row: int) -> dict[str, Any] | None:
        """The row of each coordinate according to the record; None without a record that fits the database."""
        if row not in self.records:
            return None
        attributes = self.arrays.group.attrs.asdict()
        fill_values = {name: self.arrays[name].fill_value for name in self.arrays.columns}
        names = [list(attributes[attribute]) for attribute in schema.NAMED_AXES.values()]
        try:
            values = coordinates_of(
                self.records[row], names[0], names[1], fill_values, int(attributes[schema.NUM_STRUCTURES])
            )
        except (StoreError, *UNREADABLE):
            return None
        return values if self.status[row] == schema.COMMITTED else values | {"case": ""}


def repair_rows(place: Place, name: str, log: Log) -> Rows:
    """Restore and return the rows of a database, whose metadata must be sound."""
    group = zarr.open_group(place.store, path=name, mode="r+", zarr_format=3, use_consolidated=False)
    arrays = DatabaseArrays(group)
    _repair_axis_names(place, arrays, log)
    rows = _read(place, name, arrays)
    _fit_extent(arrays, rows)
    if not rows.has_status:
        records = {row: rows.records.get(row) or _record_of(place, rows, row) for row in range(rows.num)}
        names = [str(case) for case in rows.columns["case"]]
        rows.status = states_of(place, name, {row: record for row, record in records.items() if record}, names, log)
    lost = [row for row in np.flatnonzero(rows.status != schema.PENDING).tolist() if not _is_readable(rows, row)]
    for row in lost:
        if rows.status[row] == schema.COMMITTED:
            why = "its record and other coordinates are both damaged"
            log.lost(name, _case(rows, row), f"{name}/record/c/{row}", why)
        rows.status[row] = schema.SUPERSEDED
    if lost and rows.has_status:  # first, since the next steps write nothing to these rows
        arrays["status"][:] = rows.status
    _repair_records(place, rows, lost, log)
    _repair_coordinates(place, rows, log)
    if not rows.has_status:
        place.set_aside(f"{name}/status/c/0")
        _write_chunk(place, arrays["status"], (0,), rows.status)
        log.repaired(f"{name}/status/c/0", "the states of the rows, from the records")
    arrays.keep_copy()
    _report_missing_shards(place, rows, log)
    _set_foreign_arrays_aside(place, rows, log)
    return rows


def _repair_axis_names(place: Place, arrays: DatabaseArrays, log: Log) -> None:
    """Restore the names along the axes from the attributes."""
    for axis, attribute in schema.NAMED_AXES.items():
        names, array = list(arrays.group.attrs[attribute]), arrays[axis]
        if array.shape[0] < len(names):
            array.resize((len(names),))
        for index, (part,) in _chunks(array):
            key, wanted = f"{array.path}/c/{index[0]}", names[part]
            try:
                stored = [str(name) for name in array[part]] if place.read(key) else None
            except UNREADABLE:
                stored = None
            if (stored is not None and stored[: len(wanted)] == wanted) or not wanted:
                continue
            values = np.full(part.stop - part.start, "", dtype=object)
            values[: len(wanted)] = wanted
            place.set_aside(key)
            _write_chunk(place, array, index, values)
            log.repaired(key, f"the names along the axis {axis!r}, from the attributes")


def _read(place: Place, name: str, arrays: DatabaseArrays) -> Rows:
    try:
        has_status = bool(place.read(f"{name}/status/c/0"))
        status = np.array(arrays["status"][:])
        has_status &= set(status.tolist()) <= {schema.PENDING, schema.COMMITTED, schema.SUPERSEDED}
    except UNREADABLE:
        has_status, status = False, np.zeros(arrays.num_rows, dtype=np.uint8)
    rows = Rows(name, arrays, status, has_status)
    for row in range(min(rows.num, arrays["record"].shape[0])):
        try:
            rows.records[row] = parse_record(str(arrays["record"][row]), "")
        except UNREADABLE:
            continue
    skipped = {"status", "record", *schema.NAMED_AXES, *schema.BY_CASE}
    for array in arrays.coordinates:
        if array not in skipped:
            _read_column(place, rows, array)
    return rows


def _read_column(place: Place, rows: Rows, name: str) -> None:
    array = rows.arrays[name]
    if array.shape[0] < rows.num:  # a writer died while it resized the arrays
        array.resize((rows.num, *array.shape[1:]))
    values = np.full(array.shape, array.fill_value, dtype=object if array.dtype.kind in "TO" else array.dtype)
    for index, region in _chunks(array):
        key = f"{array.path}/c/{'/'.join(map(str, index))}"
        try:
            if not place.read(key):
                raise FileNotFoundError(key)
            values[region] = array[region]
        except UNREADABLE:
            rows.bad.setdefault(name, set()).add(index)
    rows.columns[name] = values


def _chunks(array: zarr.Array) -> list[tuple[Index, tuple[slice, ...]]]:
    """The index and the region of each chunk of an array."""
    chunks_per_axis = [range(ceil(length / step)) for length, step in zip(array.shape, array.chunks, strict=True)]
    chunks = []
    for index in itertools.product(*chunks_per_axis):
        edges = zip(index, array.chunks, array.shape, strict=True)
        chunks.append((index, tuple(slice(n * step, min((n + 1) * step, length)) for n, step, length in edges)))
    return chunks


def _fit_extent(arrays: DatabaseArrays, rows: Rows) -> None:
    """Make both big arrays large enough for all cases, in case their metadata were lost."""
    for name in ("image", "label"):
        array = arrays[name]
        extents = [record.extent for record in rows.records.values()]
        voxels = [max(lengths) for lengths in zip(array.shape[2:], (1, 1, 1), *extents, strict=True)]
        shape = (max(array.shape[0], rows.num), array.shape[1], *voxels)
        if shape != array.shape:
            array.resize(shape)


def _is_readable(rows: Rows, row: int) -> bool:
    return rows.recorded_values(row) is not None or not rows.is_bad(row)


def _case(rows: Rows, row: int) -> str:
    if row in rows.records:
        return rows.records[row].case
    names = rows.columns.get("case")
    return str(names[row]) if names is not None and str(names[row]) else f"row {row}"


def _repair_records(place: Place, rows: Rows, lost: Sequence[int], log: Log) -> None:
    """Restore records that are lost, or older than the coordinates, from the coordinates."""
    for row in np.flatnonzero(rows.status != schema.PENDING).tolist():
        key, recorded = f"{rows.name}/record/c/{row}", rows.recorded_values(row)
        if row in lost:
            place.set_aside(key)
            rows.arrays["record"][row] = ""
            rows.records.pop(row, None)
            continue
        if recorded is not None:
            has_newer_coordinates = (
                not rows.is_bad(row) and int(rows.columns["revision"][row]) > rows.records[row].revision
            )
            if not has_newer_coordinates:
                continue
        record = _record_of(place, rows, row)
        if record is None:
            continue
        place.set_aside(key)
        rows.arrays["record"][row] = record_text(record)
        rows.records[row] = record
        log.repaired(key, f"the record of {_case(rows, row)}, from the coordinates")


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


def _repair_coordinates(place: Place, rows: Rows, log: Log) -> None:
    """Restore damaged chunks, and rows that differ from their records, from the records."""
    in_use = np.flatnonzero(rows.status != schema.PENDING).tolist()
    recorded = {row: row_values for row in in_use if (row_values := rows.recorded_values(row)) is not None}
    for name, values in rows.columns.items():
        array, changed = rows.arrays[name], set(rows.bad.get(name, ()))
        for row, row_values in recorded.items():
            value = np.asarray(row_values[name], dtype=values.dtype)
            target = (row, *map(slice, value.shape))
            if not _equal(values[target], value):
                values[target] = value
                changed |= {index for index, region in _chunks(array) if region[0].start <= row < region[0].stop}
        regions = dict(_chunks(array))
        for index in sorted(changed):
            chunk_rows = regions[index][0]
            if not any(chunk_rows.start <= row < chunk_rows.stop for row in in_use):
                continue
            key = f"{array.path}/c/{'/'.join(map(str, index))}"
            place.set_aside(key)
            _write_chunk(place, array, index, values[regions[index]])
            log.repaired(key, f"{name} of the rows from {chunk_rows.start} on, from the records")


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return bool(np.all((one == other) | ((one != one) & (other != other))))


def _write_chunk(place: Place, array: zarr.Array, index: Index, values: Any) -> None:
    """Write a whole chunk without reading the old one, which may be damaged."""
    memory = MemoryStore()
    text = array.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"]
    sync(memory.set("zarr.json", text))
    region = dict(_chunks(array))[index]
    decoded = zarr.open_array(memory, mode="r+", zarr_format=3).with_config(WRITE_ALL)
    decoded[region] = values
    key = f"c/{'/'.join(map(str, index))}"
    packed = sync(memory.get(key, default_buffer_prototype()))
    assert packed is not None
    place.write(f"{array.path}/{key}", bytes(packed.to_bytes()))


def _report_missing_shards(place: Place, rows: Rows, log: Log) -> None:
    """Report missing files of voxels as lost: they are stored only once, so the case must be ingested again."""
    existing: Mapping[str, set[str]] = {name: set(place.keys(f"{rows.name}/{name}/c")) for name in ("image", "label")}
    for row in np.flatnonzero(rows.status == schema.COMMITTED).tolist():
        for name in existing:
            for position in sorted(shards_named(str(rows.columns["shards"][row]), name)):
                key = f"{rows.name}/{name}/c/{row}/{position}"
                if key not in existing[name]:
                    log.lost(rows.name, _case(rows, row), key, "the file is missing")


def _set_foreign_arrays_aside(place: Place, rows: Rows, log: Log) -> None:
    """Move arrays of other programs beside the store: after the next ingest xarray could not open the database."""
    known = {*rows.arrays.coordinates, "image", "label"}
    for name in place.names(rows.name):
        folder = f"{rows.name}/{name}"
        if name in known or name.startswith(".") or place.read(folder) is not None:  # a plain file does no harm
            continue
        for key in place.keys(folder):
            place.set_aside(key)
        place.delete_folder(folder)
        log.repaired(folder, "not one of the database's arrays: moved beside the store")
