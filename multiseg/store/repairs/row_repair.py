"""The rows of a database: coordinates made again from records, records from coordinates, and states from both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """What is left of a database's rows. `bad` are the chunks of each coordinate that cannot be read, or are gone."""

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

    def told(self, row: int) -> dict[str, Any] | None:
        """What the row's record says of each coordinate; None without a record that fits the database."""
        if row not in self.records:
            return None
        held = self.arrays.group.attrs.asdict()
        own = {name: self.arrays[name].fill_value for name in self.arrays.columns}
        names = [list(held[attribute]) for attribute in schema.NAMED_AXES.values()]
        try:
            said = coordinates_of(self.records[row], names[0], names[1], own, int(held[schema.NUM_STRUCTURES]))
        except (StoreError, *UNREADABLE):
            return None
        return said if self.status[row] == schema.COMMITTED else said | {"case": ""}


def repair_rows(place: Place, name: str, log: Log) -> Rows:
    """Make all that is said of the cases of a database readable again, and give it; its metadata are sound."""
    group = zarr.open_group(place.store, path=name, mode="r+", zarr_format=3, use_consolidated=False)
    arrays = DatabaseArrays(group)
    _names(place, arrays, log)
    rows = _read(place, name, arrays)
    _fit_extent(arrays, rows)
    if not rows.has_status:
        records = {row: rows.records.get(row) or _record_of(place, rows, row) for row in range(rows.num)}
        names = [str(held) for held in rows.columns["case"]]
        rows.status = states_of(place, name, {row: one for row, one in records.items() if one}, names, log)
    lost = [row for row in np.flatnonzero(rows.status != schema.PENDING).tolist() if not _is_known(rows, row)]
    for row in lost:
        if rows.status[row] == schema.COMMITTED:
            said = "its record and other coordinates are both damaged"
            log.lost(name, _case(rows, row), f"{name}/record/c/{row}", said)
        rows.status[row] = schema.SUPERSEDED
    if lost and rows.has_status:  # first: what follows writes nothing into these rows
        arrays["status"][:] = rows.status
    _records(place, rows, lost, log)
    _coordinates(place, rows, log)
    if not rows.has_status:
        place.set_aside(f"{name}/status/c/0")
        _write_chunk(place, arrays["status"], (0,), rows.status)
        log.repaired(f"{name}/status/c/0", "the states of the rows, from the records")
    arrays.keep_copy()
    _missing_shards(place, rows, log)
    _put_foreign_aside(place, rows, log)
    return rows


def _names(place: Place, arrays: DatabaseArrays, log: Log) -> None:
    """The names along the axes, from the attributes."""
    for axis, attribute in schema.NAMED_AXES.items():
        told, array = list(arrays.group.attrs[attribute]), arrays[axis]
        if array.shape[0] < len(told):
            array.resize((len(told),))
        for index, (part,) in _chunks(array):
            key, wanted = f"{array.path}/c/{index[0]}", told[part]
            try:
                held = [str(one) for one in array[part]] if place.read(key) else None
            except UNREADABLE:
                held = None
            if (held is not None and held[: len(wanted)] == wanted) or not wanted:
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
    if array.shape[0] < rows.num:  # a writer died while it made room
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
    counts = [range(-(-n // step)) for n, step in zip(array.shape, array.chunks, strict=True)]
    return [
        (
            index,
            tuple(
                slice(at * step, min((at + 1) * step, n))
                for at, step, n in zip(index, array.chunks, array.shape, strict=True)
            ),
        )
        for index in itertools.product(*counts)
    ]


def _fit_extent(arrays: DatabaseArrays, rows: Rows) -> None:
    """Where the metadata of both big arrays were lost, their room comes from the cases."""
    for name in ("image", "label"):
        array = arrays[name]
        need = [max(n, *(one.extent[at] for one in rows.records.values()), 1) for at, n in enumerate(array.shape[2:])]
        wanted = (max(array.shape[0], rows.num), array.shape[1], *need)
        if wanted != array.shape:
            array.resize(wanted)


def _is_known(rows: Rows, row: int) -> bool:
    return rows.told(row) is not None or not rows.is_bad(row)


def _case(rows: Rows, row: int) -> str:
    if row in rows.records:
        return rows.records[row].case
    names = rows.columns.get("case")
    return str(names[row]) if names is not None and str(names[row]) else f"row {row}"


def _records(place: Place, rows: Rows, lost: Sequence[int], log: Log) -> None:
    """Records that are lost or older than the coordinates, from the coordinates."""
    for row in np.flatnonzero(rows.status != schema.PENDING).tolist():
        key, told = f"{rows.name}/record/c/{row}", rows.told(row)
        if row in lost:
            place.set_aside(key)
            rows.arrays["record"][row] = ""
            rows.records.pop(row, None)
            continue
        newer = (
            not rows.is_bad(row) and int(rows.columns["revision"][row]) > rows.records[row].revision if told else True
        )
        if told is not None and not newer:
            continue
        record = _record_of(place, rows, row)
        if record is None:
            continue
        place.set_aside(key)
        rows.arrays["record"][row] = record_text(record)
        rows.records[row] = record
        log.repaired(key, f"the record of {_case(rows, row)}, from the coordinates")


def _record_of(place: Place, rows: Rows, row: int) -> Record | None:
    """A record from a row's coordinates; None where they are not complete."""
    held = {name: values[row] for name, values in rows.columns.items() if len(values) > row}
    if rows.is_bad(row) or not str(held.get("source_sha256", "")) or not str(held.get("shards", "")):
        return None
    told = rows.arrays.group.attrs.asdict()
    modalities, annotations = (list(told[attribute]) for attribute in schema.NAMED_AXES.values())
    files = {
        f"{array}/{rest}": _mark(place.read(f"{rows.name}/{array}/c/{row}/{rest}"))
        for array in schema.BY_CASE
        for rest in sorted(shards_named(str(held["shards"]), array))
    }
    held["revision"] = abs(int(held["revision"]))
    return record_of_row(held, modalities, annotations, rows.arrays.columns, files)


def _mark(data: bytes | None) -> FileMark:
    return FileMark(0, "") if data is None else mark_of(data)


def _coordinates(place: Place, rows: Rows, log: Log) -> None:
    """Chunks that cannot be read, and rows that are not as their records say, from the records."""
    in_use = np.flatnonzero(rows.status != schema.PENDING).tolist()
    said = {row: told for row in in_use if (told := rows.told(row)) is not None}
    for name, values in rows.columns.items():
        array, changed = rows.arrays[name], set(rows.bad.get(name, ()))
        for row, told in said.items():
            value = np.asarray(told[name], dtype=values.dtype)
            place_of = (row, *map(slice, value.shape))
            if not _equal(values[place_of], value):
                values[place_of] = value
                changed |= {index for index, region in _chunks(array) if region[0].start <= row < region[0].stop}
        regions = dict(_chunks(array))
        for index in sorted(changed):
            rows_of = regions[index][0]
            if not any(rows_of.start <= row < rows_of.stop for row in in_use):
                continue
            key = f"{array.path}/c/{'/'.join(map(str, index))}"
            place.set_aside(key)
            _write_chunk(place, array, index, values[regions[index]])
            log.repaired(key, f"{name} of the rows from {rows_of.start} on, from the records")


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return bool(np.all((one == other) | ((one != one) & (other != other))))


def _write_chunk(place: Place, array: zarr.Array, index: Index, values: Any) -> None:
    """Write one chunk whole: what is there of it cannot be read, and is not."""
    memory = MemoryStore()
    text = array.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"]
    sync(memory.set("zarr.json", text))
    region = dict(_chunks(array))[index]
    own = zarr.open_array(memory, mode="r+", zarr_format=3).with_config(WRITE_ALL)
    own[region] = values
    rest = f"c/{'/'.join(map(str, index))}"
    packed = sync(memory.get(rest, default_buffer_prototype()))
    assert packed is not None
    place.write(f"{array.path}/{rest}", bytes(packed.to_bytes()))


def _missing_shards(place: Place, rows: Rows, log: Log) -> None:
    """Voxels are held once: a file of them that is gone only a new ingest brings back."""
    held: Mapping[str, set[str]] = {name: set(place.keys(f"{rows.name}/{name}/c")) for name in ("image", "label")}
    for row in np.flatnonzero(rows.status == schema.COMMITTED).tolist():
        for name in held:
            for rest in sorted(shards_named(str(rows.columns["shards"][row]), name)):
                key = f"{rows.name}/{name}/c/{row}/{rest}"
                if key not in held[name]:
                    log.lost(rows.name, _case(rows, row), key, "the file is not there")


def _put_foreign_aside(place: Place, rows: Rows, log: Log) -> None:
    """Move arrays that others wrote into the database beside the store: with its next case xarray would not open it."""
    own = {*rows.arrays.coordinates, "image", "label"}
    for name in place.names(rows.name):
        folder = f"{rows.name}/{name}"
        if name in own or name.startswith(".") or place.read(folder) is not None:  # a plain file disturbs nobody
            continue
        for key in place.keys(folder):
            place.set_aside(key)
        place.delete_folder(folder)
        log.repaired(folder, "none of the database's arrays: moved beside the store")
