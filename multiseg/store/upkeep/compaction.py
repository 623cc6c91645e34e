"""Freeing the space of rows that no longer hold a case."""

from __future__ import annotations

import numpy as np
import zarr
from zarr.core.sync import sync

from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.columns import watch
from multiseg.store.durable import sync_names
from multiseg.store.hierarchy import database_names, open_root
from multiseg.store.root import check_place, locked
from multiseg.store.upkeep.removal import empty_rows, finish_removals


def compact(url: str, dry_run: bool = False) -> dict[str, int]:
    """Delete replaced versions of cases, and what dead writers left. Returns the freed bytes by database.

    The rows become free for new cases. A reader that opened the store before and still reads a replaced version gets an
    error or, after the next ingest, another case: let trainings end first.

    Raises:
        StoreError: there is no store, or it is damaged.
        ResourceError: another process is writing to it.
    """
    check_place(url)
    if dry_run:
        root = open_root(url, "r")
        return {name: _size_of(root[name], _unused_rows(root[name])) for name in database_names(root)}
    with locked(url):
        root = open_root(url, "r+")
        finish_removals(root)
        return {name: _compact(root[name]) for name in database_names(root)}


def _unused_rows(group: zarr.Group) -> list[int]:
    """The rows without a committed case."""
    status, _arrays = watch(group)
    return [int(row) for row in np.flatnonzero(status != schema.COMMITTED)]


def _size_of(group: zarr.Group, rows: list[int]) -> int:
    store = group.store_path.store
    prefixes = [f"{group.path}/{name}/c/{row}/" for row in rows for name in schema.BY_CASE]
    return sum(sync(store.getsize_prefix(prefix)) for prefix in prefixes)


def _compact(group: zarr.Group) -> int:
    rows = _unused_rows(group)
    arrays, freed = DatabaseArrays(group), _size_of(group, rows)
    empty_rows(arrays, rows)
    status = arrays["status"][:]
    if (status == schema.SUPERSEDED).any():
        status[status == schema.SUPERSEDED] = schema.PENDING
        arrays["status"][:] = status
    arrays.set_rows(max(1, int(np.flatnonzero(status == schema.COMMITTED).max(initial=-1)) + 1))
    for row in (row for row in rows if row >= arrays.num_rows):
        sync(group.store_path.store.delete(f"{group.path}/record/c/{row}"))
    sync_names(group)
    return freed
