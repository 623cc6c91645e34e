"""A patient who withdraws: everything of a case is taken off the disk, and a removal that is killed is completed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from multiseg.errors import StoreError, UsageError
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.columns import watch
from multiseg.store.damage import UNREADABLE
from multiseg.store.durable import sync_names
from multiseg.store.hierarchy import NO_STORE, database_names, is_remote, local_path, open_root
from multiseg.store.records import Record
from multiseg.store.repairs.place import aside_of, aside_url
from multiseg.store.root import check_place, locked
from multiseg.store.rows import read_record


@dataclass(frozen=True)
class Removed:
    """A case that is, or is to be, removed: its rows, with those of older versions, and what the rows are about."""

    database: str
    case: str
    subject: str
    rows: tuple[int, ...]
    digests: tuple[str, ...]
    has_pseudonyms: bool


def remove(
    url: str, cases: Collection[str] = (), subjects: Collection[str] = (), dry_run: bool = False
) -> tuple[Removed, ...]:
    """Take cases off a store's disk: voxels, names, what is known of the patients, and provenance.

    Older versions of the cases go with them, and the damaged files that repairs have kept beside the store. What stays
    is the date and, for models to be asked whether they have learnt from them, the digests of the scans.

    First the database notes which rows go; from then on no reader that opens the store sees them, and whoever writes
    next completes the removal if this process dies.

    Args:
        cases: as DATABASE/CASE.
        subjects: as DATABASE/SUBJECT: all cases of these people.

    Raises:
        UsageError: a name is not DATABASE/NAME.
        StoreError: there is no such case or subject, or the database is damaged.
        ResourceError: another process writes to the store.
    """
    asked = [*((name, False) for name in cases), *((name, True) for name in subjects)]
    for name, _is_subject in asked:
        if not all(name.partition("/")[::2]):
            raise UsageError(f"{name!r} names no case. Name it as DATABASE/CASE, or a person as DATABASE/SUBJECT.")
    check_place(url)
    if dry_run:
        return _found(open_root(url, "r"), asked)
    with locked(url):
        root = open_root(url, "r+")
        finish_removals(root)
        found = _found(root, asked)
        for database in dict.fromkeys(one.database for one in found):
            _begin(root[database], [one for one in found if one.database == database])
        finish_removals(root)
        _forget_beside(url)
    return found


def _found(root: zarr.Group, asked: Iterable[tuple[str, bool]]) -> tuple[Removed, ...]:
    """The cases that are asked for, each once."""
    by_database: dict[str, list[tuple[str, bool]]] = {}
    for name, is_subject in asked:
        database, _, own = name.partition("/")
        by_database.setdefault(database, []).append((own, is_subject))
    names = database_names(root)
    found: list[Removed] = []
    for database, wanted in by_database.items():
        if database not in names:
            raise StoreError(f"there is no database {database!r}. There are: {', '.join(names) or 'none'}.")
        found += _in_database(root[database], wanted)
    return tuple(found)


def _in_database(group: zarr.Group, wanted: Sequence[tuple[str, bool]]) -> list[Removed]:
    rows = _all_rows(group)
    found: dict[str, list[tuple[int, str, str, tuple[str, ...]]]] = {}
    for own, is_subject in wanted:
        some = [row for row in rows if row[2 if is_subject else 1] == own]
        if not some:
            what = "subject" if is_subject else "case"
            raise StoreError(f"database {group.path!r} has no {what} {own!r}. See: multiseg info STORE --cases.")
        for row in some:
            if row not in found.setdefault(row[1], []):
                found[row[1]].append(row)
    has_pseudonyms = bool(group.attrs.get("pseudonyms"))
    return [
        Removed(
            database=group.path,
            case=case,
            subject=next((row[2] for row in some if row[2]), ""),
            rows=tuple(sorted(row[0] for row in some)),
            digests=tuple(sorted({digest for row in some for digest in row[3] if digest})),
            has_pseudonyms=has_pseudonyms,
        )
        for case, some in found.items()
    ]


def _all_rows(group: zarr.Group) -> list[tuple[int, str, str, tuple[str, ...]]]:
    """Row, case, subject and digests of all rows that hold anything, committed or not."""
    status, arrays = watch(group)
    columns = {name: arrays[name][:] for name in ("case", "subject", "content")}
    writer, found = DatabaseArrays(group), []
    for row in range(len(status)):
        case, subject = str(columns["case"][row]), str(columns["subject"][row])
        if not case and (record := _record(writer, row)) is not None:  # an older version has no name any more
            case, subject = record.case, record.subject
        if case:
            found.append((row, case, subject, tuple(map(str, columns["content"][row]))))
    return found


def _record(arrays: DatabaseArrays, row: int) -> Record | None:
    try:
        return read_record(arrays, row)
    except UNREADABLE:
        return None


def _begin(group: zarr.Group, found: Sequence[Removed]) -> None:
    """Note which rows go, in one write of one file: from here on the removal is completed, whoever dies."""
    digests = sorted({digest for one in found for digest in one.digests})
    told = [*group.attrs.get(schema.REMOVED, ()), {"date": datetime.now(UTC).date().isoformat(), "scans": digests}]
    rows = sorted({row for one in found for row in one.rows} | set(group.attrs.get(schema.REMOVING, ())))
    group.attrs.update({schema.REMOVED: told, schema.REMOVING: rows})


def complete_removals(url: str) -> None:
    """The same for whoever holds a store that may not be there yet."""
    try:
        root = open_root(url, "r")
    except StoreError as error:
        if error.code == NO_STORE:
            return
        raise
    if any(schema.REMOVING in root[name].attrs for name in database_names(root) if name in root):
        finish_removals(open_root(url, "r+"))


def finish_removals(root: zarr.Group) -> None:
    """Complete what was started, by this process or by one that died. To be called by whoever holds the store."""
    for name in database_names(root):
        group = root.get(name)
        if isinstance(group, zarr.Group) and (rows := list(group.attrs.get(schema.REMOVING, ()))):
            _finish(group, rows)


def _finish(group: zarr.Group, rows: Sequence[int]) -> None:
    watch(group)
    arrays = DatabaseArrays(group)
    status = arrays["status"][:]
    if (status[rows] == schema.COMMITTED).any():
        status[[row for row in rows if status[row] == schema.COMMITTED]] = schema.SUPERSEDED
        arrays["status"][:] = status
    empty_rows(arrays, rows)
    sync_names(group)
    held = group.attrs.asdict()
    del held[schema.REMOVING]
    group.attrs.put(held)
    arrays.keep_copy()
    sync_names(group)


def empty_rows(arrays: DatabaseArrays, rows: Iterable[int]) -> None:
    """Take everything of rows off the disk that nobody reads any more; their states stay."""
    group, store = arrays.group, arrays.group.store_path.store
    blank = {name: _nothing(arrays[name]) for name in arrays.coordinates if _is_said_of_rows(name)}
    for row in rows:
        # First the names of the files, so that nobody misses the files.
        arrays.write_row(row, {"shards": blank["shards"]})
        sync_names(group)
        for name in schema.BY_CASE:
            sync(store.delete_dir(f"{group.path}/{name}/c/{row}"))
        arrays.write_row(row, blank)
    sync_names(group)


def _is_said_of_rows(name: str) -> bool:
    return name not in (*schema.NAMED_AXES, *schema.BY_CASE, "status")


def _nothing(array: zarr.Array) -> Any:
    """What stands in a row of which nothing is said."""
    if array.ndim == 1:
        return array.fill_value if array.dtype.kind not in "TO" else ""
    return np.full(array.shape[1:], array.fill_value if array.dtype.kind not in "TO" else "", dtype=_dtype(array))


def _dtype(array: zarr.Array) -> Any:
    return object if array.dtype.kind in "TO" else array.dtype


def _forget_beside(url: str) -> None:
    """Take away what repairs have kept beside the store, and files that dead writers left in it."""
    if is_remote(url):
        sync(_emptied(aside_of(url)))
        return
    folder = local_path(aside_url(url))
    if folder.is_dir():
        sync(aside_of(url).clear())
        folder.rmdir()
    for left in local_path(url).rglob("*.partial"):
        left.unlink()


async def _emptied(store: Any) -> None:
    async for key in store.list_prefix(""):
        await store.delete(key)
