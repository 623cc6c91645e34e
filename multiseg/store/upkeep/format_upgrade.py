"""Upgrading a store from format 2 to format 3 in place, without ingesting anything again.

Format 3 lists the files that must exist. The upgrade only adds data, and writes the format number last: if it dies, the
store still has format 2, and the upgrade can be run again from the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import zarr

from multiseg.errors import StoreError, UsageError
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.checks.fault_collector import Faults
from multiseg.store.checks.layout import Layout, listed, read_layout
from multiseg.store.checks.older import OF_FORMAT_2, verify_older
from multiseg.store.checks.verification import verify_rows
from multiseg.store.columns import participant_columns
from multiseg.store.coordinate_chunks import write_regions
from multiseg.store.durable import sync_names
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import REQUESTS_AT_ONCE, ROOT_KEY, collect, open_root, read_object
from multiseg.store.records import FileMark, Record, record_of_row, record_text
from multiseg.store.root import locked
from multiseg.store.rows import mark_of
from multiseg.store.shard_names import shards_text
from multiseg.types import OnStep, no_progress

OF_SPLITS = ("SUBJECT_IN_TWO_SPLITS", "SCAN_IN_TWO_SPLITS")
"""Codes of errors that do not come from lost files."""


@dataclass(frozen=True)
class Upgrade:
    """The outcome of an upgrade: findings about the store, and whether it has the newest format now."""

    findings: Sequence[Finding]
    is_done: bool


def upgrade_store(url: str, accepted: Collection[str] = (), on_step: OnStep = no_progress, workers: int = 1) -> Upgrade:
    """Convert a store of format 2 in place; a store of the newest format stays as it is.

    Every voxel is checked before anything is written, as `verify` does. If anything is damaged or seems lost, the store
    is not converted; the findings name it.

    Args:
        accepted: arrays, such as "ms/age", whose missing chunks the user knows to be empty.
        on_step: called after each case that is checked, and after each that is converted.

    Raises:
        StoreError: there is no store at `url`, or it has another format.
        UsageError: the store does not have an accepted array.
        ResourceError: it cannot be written, or another process is writing to it.
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
        num_checked = sum(len(layout.status) for layout in layouts)
        total = num_checked + sum(int(layout.expected.in_use.sum()) for layout in layouts)
        faults.found.extend(verify_rows(layouts, lambda done, _, case: on_step(done, total, case), workers))
        if any(map(_prevents_upgrade, faults.found)):
            return Upgrade(faults.found, False)
        steps = count(num_checked + 1)
        for layout in layouts:
            _convert(DatabaseArrays(root[layout.name]), layout, lambda case: on_step(next(steps), total, case))
        sync_names(root)
        root.attrs[ROOT_KEY] = head | {"format": schema.FORMAT}
    return Upgrade(faults.found, True)


def _prevents_upgrade(finding: Finding) -> bool:
    """Whether a finding prevents the upgrade. Damaged voxels do not: their checksums reveal them afterwards, too."""
    is_noticed = finding.code == "DAMAGED_CHUNK" and any(f"/{name}/c/" in finding.file for name in schema.BY_CASE)
    return finding.severity is Severity.ERROR and not is_noticed and finding.code not in OF_SPLITS


def _unnamed(root: zarr.Group, named: Collection[str]) -> list[str]:
    """Complete databases that the root does not name; the next ingest may add them to its list."""
    others = [name for name in listed(root) if name not in named and isinstance(root.get(name), zarr.Group)]
    return [name for name in others if all(array in root[name] for array in (*OF_FORMAT_2, "image", "label"))]


def _check_accepted(root: zarr.Group, names: Sequence[str], accepted: Collection[str]) -> None:
    arrays = {f"{name}/{array}" for name in names for array in (*OF_FORMAT_2, *participant_columns(root[name]))}
    if unknown := sorted(set(accepted) - arrays):
        raise UsageError(f"--accept {unknown[0]}: the store has no such array. Name it as DATABASE/ARRAY.")


def _read(group: zarr.Group, name: str, grid_mm: Sequence[float], accepted: Collection[str], faults: Faults) -> Layout:
    database_faults = Faults(name, found=faults.found)
    layout = read_layout(group, name, grid_mm, database_faults, OF_FORMAT_2)
    verify_older(layout, accepted, database_faults)
    return layout


def _convert(arrays: DatabaseArrays, layout: Layout, on_case: Callable[[str], None]) -> None:
    """Write what format 3 adds. After an upgrade that died, this writes the same again."""
    arrays.require_coordinates()
    arrays.set_rows(max(1, len(layout.status)))
    for name, block in layout.absent:
        if name not in schema.BY_CASE:
            write_regions({name: (arrays[name], block.region, arrays[name].fill_value)})
    arrays.write("status", arrays.read("status"))
    rows = np.flatnonzero(layout.expected.in_use)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        records = []
        for row, record in zip(rows, pool.map(lambda row: _record(arrays, layout, int(row)), rows), strict=True):
            records.append(record)
            on_case(f"{layout.name}/{layout.case(int(row))}")
        list(pool.map(lambda row, record: arrays.write_row(int(row), {"record": record_text(record)}), rows, records))
    shards = np.full(arrays.num_rows, "", dtype=object)
    revision = np.zeros(arrays.num_rows, dtype=np.int64)
    for row, record in zip(rows, records, strict=True):
        shards[row], revision[row] = shards_text(record.shards), record.revision
    arrays.write("shards", shards)
    arrays.write("revision", revision)
    arrays.group.attrs.update(_lengths(layout, arrays))
    arrays.keep_copy()


def _lengths(layout: Layout, arrays: DatabaseArrays) -> dict[str, Any]:
    """The attributes with the lengths that all arrays have reached."""
    shortest: dict[str, int] = {}
    for array in (array for name, array in layout.arrays.items() if name not in schema.VOLUMES):
        for axis, n in zip(array.metadata.dimension_names, array.shape, strict=True):
            shortest[axis] = min(n, shortest.get(axis, n))
    names = [name for name in arrays.coordinates if name not in ("case", *schema.NAMED_AXES)]
    return {
        "modalities": [name for name in layout.modalities[: shortest["modality"]] if name],
        "annotations": [name for name in layout.annotations[: shortest["annotation"]] if name],
        schema.NUM_STRUCTURES: shortest["structure"],
        "coordinates": " ".join(names),
    }


def _record(arrays: DatabaseArrays, layout: Layout, row: int) -> Record:
    """The record of a row, from its coordinates and files."""
    coordinates = {name: values[row] for name, values in layout.columns.items() if name not in schema.NAMED_AXES}
    coordinates["revision"] = row + 1
    return record_of_row(coordinates, layout.modalities, layout.annotations, arrays.columns, _files(arrays, row))


def _files(arrays: DatabaseArrays, row: int) -> dict[str, FileMark]:
    """The files of a row, by array and position."""
    store, marks = arrays.group.store_path.store, {}
    for array in schema.BY_CASE:
        prefix = f"{arrays.group.path}/{array}/c/{row}/"
        for key in collect(store.list_prefix(prefix)):
            position = key.removeprefix(prefix)
            if re.fullmatch(r"\d+(/\d+)*", position):
                data = read_object(store, key)
                if data is None:
                    to_do = "Stop any other program that changes the store; then upgrade again."
                    raise StoreError(f"{key} has disappeared. {to_do}", file=key)
                marks[f"{array}/{position}"] = mark_of(data)
    return marks
