"""A database as an xarray dataset: volumes that are read when they are computed, and named coordinates."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from multiseg.store import schema
from multiseg.store.columns import coordinate_names, read_arrays
from multiseg.store.coordinate_chunks import open_arrays

LAZY = ("image", "label", "foreground", "native_header")


def committed_dataset(group: zarr.Group) -> xr.Dataset:
    """The committed cases of a database. It opens arrays by name and lists no folder, so a plain web server will do."""
    names = [name for name in coordinate_names(group) if name not in schema.BOOKKEEPING]
    arrays = open_arrays(group, [*names, "image", "label"])
    loaded = read_arrays(arrays, [name for name in names if name not in LAZY])
    variables = {name: _variable(array, loaded.get(name)) for name, array in arrays.items()}
    attributes = {key: value for key, value in group.attrs.asdict().items() if key != "coordinates"}
    whole = xr.Dataset({name: variables.pop(name) for name in ("image", "label")}, coords=variables, attrs=attributes)
    return whole.isel(case=np.flatnonzero(loaded["status"] == schema.COMMITTED))


def _variable(array: zarr.Array, loaded: Any) -> xr.Variable:
    # One dask chunk per case: chunks of 32^3 voxels would spend more time in dask's planning than in reading.
    pieces = (1, *(max(1, n) for n in array.shape[1:]))
    values: Any = loaded
    if loaded is None:
        values = da.from_zarr(array, chunks=pieces)  # type: ignore[no-untyped-call]
    stored = xr.Variable(array.metadata.dimension_names, values, attrs=array.attrs.asdict())
    if array.basename != "image":
        return stored
    # Decode it as plain xarray would, also in older stores, whose image has no attributes yet.
    stored.attrs |= schema.IMAGE_ATTRIBUTES
    return xr.conventions.decode_cf_variable("image", stored)
