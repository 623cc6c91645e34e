"""What a database holds beside its volumes, found by name: a plain web server lists nothing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr

from multiseg.store import schema

READ_BY_CASE = ("foreground", "native_header", "sources")
"""Large, and seldom wanted of all cases."""
REQUESTS_AT_ONCE = 16
"""A database has some 25 coordinates, and a server takes its time with each answer."""


def participant_columns(group: zarr.Group) -> list[str]:
    """The columns that a database's own table gave it."""
    return list(group.attrs.get(schema.PARTICIPANT_COLUMNS, []))


def text_columns(group: zarr.Group) -> list[str]:
    """The participants' columns of a database that hold text."""
    return [name for name in participant_columns(group) if group[name].dtype.kind != "f"]


def coordinate_names(group: zarr.Group) -> list[str]:
    """All arrays of a database but "image" and "label"."""
    return [*schema.COORDINATES, *participant_columns(group)]


def open_arrays(group: zarr.Group, names: Sequence[str]) -> dict[str, zarr.Array]:
    """Arrays of a group by name."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return dict(zip(names, pool.map(group.__getitem__, names), strict=True))


def read_arrays(group: zarr.Group, names: Sequence[str]) -> dict[str, Any]:
    """The contents of arrays of a group by name."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return dict(zip(names, pool.map(lambda name: group[name][:], names), strict=True))


def read_columns(group: zarr.Group) -> tuple[zarr.Group, dict[str, Any]]:
    """A database's group and what is known of each of its rows, both as they were at one moment."""
    status = group["status"][:]
    while True:
        group = zarr.open_group(group.store_path, mode="r", zarr_format=3, use_consolidated=False)
        left_out = {*READ_BY_CASE, "modality", "annotation", "status"}
        held = read_arrays(group, [name for name in coordinate_names(group) if name not in left_out])
        seen, status = status, group["status"][:]
        # Otherwise a case was committed or replaced while its columns were read.
        if np.array_equal(seen, status):
            return group, held | {"status": status}
