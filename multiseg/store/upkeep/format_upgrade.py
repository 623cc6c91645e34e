"""From format 2 to format 3, in place: what has to be there is written down, and nothing is ingested again.

Everything is added to what is there, and the store's format number comes last: a converter that dies is run again and
does its work from the beginning, and until then the store is of format 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from multiseg.errors import StoreError, UsageError
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.checks.fault_collector import Faults
from multiseg.store.checks.layout import Layout, listed, read_layout
from multiseg.store.checks.older import OF_FORMAT_2, verify_older
from multiseg.store.checks.verify import verify_rows
from multiseg.store.columns import REQUESTS_AT_ONCE, participant_columns
from multiseg.store.durable import sync_names
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import ROOT_KEY, open_root
from multiseg.store.records import FileMark, Record, record_of_row, record_text
from multiseg.store.root import locked
from multiseg.store.rows import mark_of
from multiseg.store.shard_names import shards_text

OF_SPLITS = ("SUBJECT_IN_TWO_SPLITS", "SCAN_IN_TWO_SPLITS")
"""Errors that say nothing of lost files."""
OnStep = Callable[[int, int, str], None]
"""Called with how much is done, how much there is to do, and "DATABASE/CASE"."""


@dataclass(frozen=True)
class Upgrade:
    """What became of a store: findings about it, and whether it is of the newest format now."""

    findings: Sequence[Finding]
    is_done: bool


def upgrade_store(
    url: str, accepted: Collection[str] = (), on_case: OnStep = lambda done, total, case: None, workers: int = 1
) -> Upgrade:
    """Convert a store of format 2 in its place; one of the newest format is left alone.

    Every voxel is checked before anything is written, as `verify` does. A store in which anything is damaged or looks
    lost is not converted: the findings name it.

    Args:
        accepted: arrays, such as "ms/age", whose chunks that are not there are empty, as a person knows.

    Raises:
        StoreError: there is no store at `url`, or one of another format.
        UsageError: an accepted array is none of the store's.
        ResourceError: it cannot be written, or another process writes to it.
    """
    if open_root(url, "r", (schema.CONVERTED, schema.FORMAT)).attrs[ROOT_KEY]["format"] == schema.FORMAT:
        return Upgrade((), True)
    with locked(url):
        root = open_root(url, "r+", (schema.CONVERTED, schema.FORMAT))
        head: dict[str, Any] = root.attrs[ROOT_KEY]
        faults = Faults()
        names = [*head["databases"], *_unnamed(root, head["databases"])]
        _check_accepted(root, names, accepted)
        layouts = [_read(root[name], name, head["grid_mm"], accepted, faults) for name in names]
        faults.found.extend(verify_rows(layouts, on_case, workers))
        if any(map(_stands_in_the_way, faults.found)):
            return Upgrade(faults.found, False)
        for layout in layouts:
            _convert(DatabaseArrays(root[layout.name]), layout)
        sync_names(root)
        root.attrs[ROOT_KEY] = head | {"format": schema.FORMAT}
    return Upgrade(faults.found, True)


def _stands_in_the_way(finding: Finding) -> bool:
    """Whether it would no longer be noticed afterwards: damaged voxels are, by their checksums."""
    is_noticed = finding.code == "DAMAGED_CHUNK" and any(f"/{name}/c/" in finding.file for name in schema.BY_CASE)
    return finding.severity is Severity.ERROR and not is_noticed and finding.code not in OF_SPLITS


def _unnamed(root: zarr.Group, named: Collection[str]) -> list[str]:
    """Whole databases that the root does not name: the next ingest may take them up."""
    others = [name for name in listed(root) if name not in named and isinstance(root.get(name), zarr.Group)]
    return [name for name in others if all(array in root[name] for array in (*OF_FORMAT_2, "image", "label"))]


def _check_accepted(root: zarr.Group, names: Sequence[str], accepted: Collection[str]) -> None:
    known = {f"{name}/{array}" for name in names for array in (*OF_FORMAT_2, *participant_columns(root[name]))}
    if unknown := sorted(set(accepted) - known):
        raise UsageError(f"--accept {unknown[0]}: the store has no such array. Name it as DATABASE/ARRAY.")


def _read(group: zarr.Group, name: str, grid_mm: Sequence[float], accepted: Collection[str], faults: Faults) -> Layout:
    noted = Faults(name)
    layout = read_layout(group, name, grid_mm, noted, OF_FORMAT_2)
    verify_older(layout, accepted, noted)
    faults.found.extend(noted.found)
    return layout


def _convert(arrays: DatabaseArrays, layout: Layout) -> None:
    """Write what format 3 has more; the same again where a converter died."""
    arrays.require_coordinates()
    arrays.set_rows(max(1, len(layout.status)))
    for name, block in layout.absent:
        if name not in schema.BY_CASE:
            arrays[name][block.region] = arrays[name].fill_value
    arrays["status"][:] = arrays["status"][:]
    rows = np.flatnonzero(layout.expected.in_use)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        records = list(pool.map(lambda row: _record(arrays, layout, int(row)), rows))
        list(pool.map(lambda row, record: arrays["record"].__setitem__(int(row), record_text(record)), rows, records))
    shards = np.full(arrays.num_rows, "", dtype=object)
    revision = np.zeros(arrays.num_rows, dtype=np.int64)
    for row, record in zip(rows, records, strict=True):
        shards[row], revision[row] = shards_text(record.shards), record.revision
    arrays["shards"][:] = shards
    arrays["revision"][:] = revision
    arrays.group.attrs.update(_lengths(layout, arrays))
    arrays.keep_copy()


def _lengths(layout: Layout, arrays: DatabaseArrays) -> dict[str, Any]:
    """The attributes that tell how far all arrays have grown."""
    shortest: dict[str, int] = {}
    for name, array in layout.arrays.items():
        for axis, n in zip(array.metadata.dimension_names, array.shape, strict=True):
            if name not in ("image", "label"):
                shortest[axis] = min(n, shortest.get(axis, n))
    names = [name for name in arrays.coordinates if name not in ("case", *schema.NAMED_AXES)]
    return {
        "modalities": _names(layout.modalities, shortest["modality"]),
        "annotations": _names(layout.annotations, shortest["annotation"]),
        schema.NUM_STRUCTURES: shortest["structure"],
        "coordinates": " ".join(names),
    }


def _names(names: Sequence[str], length: int) -> list[str]:
    return [name for name in names[:length] if name]


def _record(arrays: DatabaseArrays, layout: Layout, row: int) -> Record:
    """What the coordinates and the files of a row say."""
    held = {name: values[row] for name, values in layout.columns.items() if name not in schema.NAMED_AXES}
    held["revision"] = row + 1
    return record_of_row(held, layout.modalities, layout.annotations, arrays.columns, _files(arrays, row))


def _files(arrays: DatabaseArrays, row: int) -> dict[str, FileMark]:
    """The files that a row has, by array and place."""
    store, database, found = arrays.group.store_path.store, arrays.group.path, {}

    async def keys(prefix: str) -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    for array in schema.BY_CASE:
        prefix = f"{database}/{array}/c/{row}/"
        for key in sync(keys(prefix)):
            place = key.removeprefix(prefix)
            if re.fullmatch(r"\d+(/\d+)*", place):
                data = sync(store.get(key, default_buffer_prototype()))
                if data is None:
                    raise StoreError(f"{key} is gone. Does somebody else change the store?", file=key)
                found[f"{array}/{place}"] = mark_of(data.to_bytes())
    return found
