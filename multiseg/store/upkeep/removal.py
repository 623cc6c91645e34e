"""Deleting data from a store: cases, for example when a patient withdraws consent, and rows without a valid case."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.core.sync import sync

from multiseg.errors import StoreError, UsageError
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.columns import read_arrays, watch
from multiseg.store.damage import UNREADABLE
from multiseg.store.durable import sync_names
from multiseg.store.findings import by_name
from multiseg.store.hierarchy import NO_STORE, database_names, is_remote, local_path, open_root
from multiseg.store.records import Record
from multiseg.store.repairs.place import aside_of, aside_url
from multiseg.store.root import check_place, locked
from multiseg.store.rows import read_record
from multiseg.types import OnStep, no_progress

OnRow = Callable[[str], None]
"""Called after each row with the name of its database."""


@dataclass(frozen=True)
class Removed:
    """A case that was or will be removed, with its rows (including older versions) and the digests of its scans."""

    database: str
    case: str
    subject: str
    rows: tuple[int, ...]
    digests: tuple[str, ...]
    has_pseudonyms: bool


def remove(
    url: str,
    cases: Collection[str] = (),
    subjects: Collection[str] = (),
    dry_run: bool = False,
    on_step: OnStep = no_progress,
) -> tuple[Removed, ...]:
    """Delete cases from a store: voxels, names, metadata of the patients, and provenance.

    Older versions of the cases are deleted too, and so are the damaged files that repairs kept beside the store. Only
    the date and the digests of the scans stay: with them a model can be checked for having learnt from these cases.

    First the database notes the rows to delete. From then on readers that open the store do not see them, and if this
    process dies, the next writer completes the removal.

    Args:
        cases: as DATABASE/CASE.
        subjects: as DATABASE/SUBJECT; all cases of these people are removed.
        on_step: called after each deleted row.

    Raises:
        UsageError: a name is not of the form DATABASE/NAME.
        StoreError: there is no such case or subject, or the database is damaged.
        ResourceError: another process is writing to the store.
    """
    requests = [*((name, "case") for name in cases), *((name, "subject") for name in subjects)]
    for name, _what in requests:
        if not all(name.partition("/")[::2]):
            to_do = "Write DATABASE/CASE, or DATABASE/SUBJECT for a person."
            raise UsageError(f"{name!r} is not the name of a case. {to_do}")
    check_place(url)
    if dry_run:
        return _find_cases(open_root(url, "r"), requests)
    with locked(url):
        root = open_root(url, "r+")
        finish_removals(root)
        found = _find_cases(root, requests)
        for database in dict.fromkeys(removed.database for removed in found):
            _begin(root[database], [removed for removed in found if removed.database == database])
        finish_removals(root, on_step)
        _delete_leftovers(url)
    return found


def _find_cases(root: zarr.Group, requests: Iterable[tuple[str, str]]) -> tuple[Removed, ...]:
    """The requested cases, each once."""
    names = database_names(root)
    found: list[Removed] = []
    for database, database_requests in by_name(requests, lambda request: request[0].partition("/")[0]).items():
        if database not in names:
            raise StoreError(f"there is no database {database!r}. There are: {', '.join(names) or 'none'}.")
        found += _find_in_database(root[database], database_requests)
    return tuple(found)


def _find_in_database(group: zarr.Group, requests: Sequence[tuple[str, str]]) -> list[Removed]:
    rows = _all_rows(group)
    found: dict[str, dict[int, Row]] = {}
    for name, what in requests:
        own_name = name.partition("/")[2]
        matching = [row for row in rows if getattr(row, what) == own_name]
        if not matching:
            raise StoreError(f"database {group.path!r} has no {what} {own_name!r}. See: multiseg info STORE --cases.")
        for row in matching:
            found.setdefault(row.case, {})[row.number] = row
    has_pseudonyms = bool(group.attrs.get("pseudonyms"))
    removed = []
    for case, by_number in found.items():
        subject = next((row.subject for row in by_number.values() if row.subject), "")
        digests = sorted({digest for row in by_number.values() for digest in row.digests if digest})
        removed.append(Removed(group.path, case, subject, tuple(sorted(by_number)), tuple(digests), has_pseudonyms))
    return removed


class Row(NamedTuple):
    """A row with data, committed or not."""

    number: int
    case: str
    subject: str
    digests: tuple[str, ...]


def _all_rows(group: zarr.Group) -> list[Row]:
    status, arrays = watch(group)
    columns = read_arrays(arrays, ["case", "subject", "content"])
    writer, found = DatabaseArrays(group), []
    for row in range(len(status)):
        case, subject = str(columns["case"][row]), str(columns["subject"][row])
        if not case and (record := _record(writer, row)) is not None:  # older versions have lost their name
            case, subject = record.case, record.subject
        if case:
            found.append(Row(row, case, subject, tuple(map(str, columns["content"][row]))))
    return found


def _record(arrays: DatabaseArrays, row: int) -> Record | None:
    try:
        return read_record(arrays, row)
    except UNREADABLE:
        return None


def _begin(group: zarr.Group, found: Sequence[Removed]) -> None:
    """Note the rows to delete, by writing one file. From then on the removal will be completed, even after a crash."""
    digests = sorted({digest for removed in found for digest in removed.digests})
    removals = [*group.attrs.get(schema.REMOVED, ()), {"date": datetime.now(UTC).date().isoformat(), "scans": digests}]
    rows = sorted({row for removed in found for row in removed.rows} | set(group.attrs.get(schema.REMOVING, ())))
    group.attrs.update({schema.REMOVED: removals, schema.REMOVING: rows})


def complete_removals(url: str) -> None:
    """As `finish_removals`, for a store that may not exist yet."""
    try:
        root = open_root(url, "r")
    except StoreError as error:
        if error.code == NO_STORE:
            return
        raise
    if any(schema.REMOVING in root[name].attrs for name in database_names(root) if name in root):
        finish_removals(open_root(url, "r+"))


def finish_removals(root: zarr.Group, on_step: OnStep = no_progress) -> None:
    """Complete removals begun by this process or by one that died. The caller must hold the store's lock."""
    groups = [group for name in database_names(root) if isinstance(group := root.get(name), zarr.Group)]
    rows = {group.path: list(group.attrs.get(schema.REMOVING, ())) for group in groups}
    on_row = _counter(rows, on_step)
    for group in groups:
        if rows[group.path]:
            _finish(group, rows[group.path], on_row)


def _counter(rows: Mapping[str, Sequence[int]], on_step: OnStep) -> OnRow:
    """What to call after each of these rows of databases, so that `on_step` gets their number."""
    total, steps = sum(map(len, rows.values())), count(1)
    return lambda database: on_step(next(steps), total, database)


def _finish(group: zarr.Group, rows: Sequence[int], on_row: OnRow) -> None:
    watch(group)
    arrays = DatabaseArrays(group)
    status = arrays.read("status")
    if (status[rows] == schema.COMMITTED).any():
        status[[row for row in rows if status[row] == schema.COMMITTED]] = schema.SUPERSEDED
        arrays.write("status", status)
    _empty_rows(arrays, rows, on_row)
    sync_names(group)
    attributes = group.attrs.asdict()
    del attributes[schema.REMOVING]
    group.attrs.put(attributes)
    arrays.keep_copy()
    sync_names(group)


def _empty_rows(arrays: DatabaseArrays, rows: Iterable[int], on_row: OnRow) -> None:
    """Delete all data of rows that are not committed; their states stay."""
    group, store = arrays.group, arrays.group.store_path.store
    without_rows = (*schema.NAMED_AXES, *schema.BY_CASE, "status")
    blank = {name: _empty_value(arrays[name]) for name in arrays.coordinates if name not in without_rows}
    for row in rows:
        # First clear the names of the files: files that are named but missing would be an error.
        arrays.write_row(row, {"shards": blank["shards"]})
        sync_names(group)
        for name in schema.BY_CASE:
            sync(store.delete_dir(f"{group.path}/{name}/c/{row}"))
        arrays.write_row(row, blank)
        on_row(group.path)
    sync_names(group)


def _empty_value(array: zarr.Array) -> Any:
    """The value of an empty row of an array."""
    is_text = array.dtype.kind in "TO"
    value = "" if is_text else array.fill_value
    return value if array.ndim == 1 else np.full(array.shape[1:], value, dtype=object if is_text else array.dtype)


def _delete_leftovers(url: str) -> None:
    """Delete the files that repairs kept beside the store, and files that dead writers left in it."""
    if is_remote(url):
        sync(aside_of(url).clear())
        return
    folder = local_path(aside_url(url))
    if folder.is_dir():
        sync(aside_of(url).clear())
        folder.rmdir()
    for partial in local_path(url).rglob("*.partial"):
        partial.unlink()


def compact(url: str, dry_run: bool = False, on_step: OnStep = no_progress) -> dict[str, int]:
    """Delete replaced versions of cases, and what dead writers left. Returns the freed bytes by database.

    The rows become free for new cases. A reader that opened the store before and still reads a replaced version gets an
    error or, after the next ingest, another case: let trainings end first.

    Args:
        dry_run: only report what would be freed.
        on_step: called after each row.

    Raises:
        StoreError: there is no store, or it is damaged.
        ResourceError: another process is writing to it.
    """
    check_place(url)
    if dry_run:
        root = open_root(url, "r")
        rows = {name: _unused_rows(root[name]) for name in database_names(root)}
        on_row = _counter(rows, on_step)
        return {name: _size_of(root[name], unused, on_row) for name, unused in rows.items()}
    with locked(url):
        root = open_root(url, "r+")
        finish_removals(root)
        rows = {name: _unused_rows(root[name]) for name in database_names(root)}
        on_row = _counter(rows, on_step)
        return {name: _compact(root[name], unused, on_row) for name, unused in rows.items()}


def _unused_rows(group: zarr.Group) -> list[int]:
    """The rows without a committed case."""
    status, _arrays = watch(group)
    return [int(row) for row in np.flatnonzero(status != schema.COMMITTED)]


def _size_of(group: zarr.Group, rows: Sequence[int], on_row: OnRow = lambda database: None) -> int:
    store, num_bytes = group.store_path.store, 0
    for row in rows:
        num_bytes += sum(sync(store.getsize_prefix(f"{group.path}/{name}/c/{row}/")) for name in schema.BY_CASE)
        on_row(group.path)
    return num_bytes


def _compact(group: zarr.Group, rows: Sequence[int], on_row: OnRow) -> int:
    arrays, freed = DatabaseArrays(group), _size_of(group, rows)
    _empty_rows(arrays, rows, on_row)
    status = arrays.read("status")
    if (status == schema.SUPERSEDED).any():
        status[status == schema.SUPERSEDED] = schema.PENDING
        arrays.write("status", status)
    arrays.set_rows(max(1, int(np.flatnonzero(status == schema.COMMITTED).max(initial=-1)) + 1))
    for row in (row for row in rows if row >= arrays.num_rows):
        sync(group.store_path.store.delete(f"{group.path}/record/c/{row}"))
    sync_names(group)
    return freed
