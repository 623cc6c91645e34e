"""What a database holds beside its volumes, found by name: a plain web server lists nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from jaxtyping import UInt8
from zarr.core.array import AsyncArray

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.copies import check_copies
from multiseg.store.damage import DAMAGED, damaged
from multiseg.store.guard import Expected, GuardedStore

READ_BY_CASE = ("foreground", "native_header", "sources", "record")
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


def read_arrays(arrays: Mapping[str, zarr.Array], names: Iterable[str]) -> dict[str, Any]:
    """The contents of open arrays by name."""
    wanted = list(names)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(lambda name: arrays[name][:], wanted), strict=True))


def lengths_of(group: zarr.Group) -> dict[str, int]:
    """How long the axes modality, annotation and structure are, as far as every array has grown."""
    held = group.attrs.asdict()
    named = {axis: len(held.get(attribute, ())) for axis, attribute in schema.NAMED_AXES.items()}
    return named | {"structure": int(held.get(schema.NUM_STRUCTURES, 0))}


def watch(group: zarr.Group) -> tuple[UInt8[np.ndarray, " case"], dict[str, zarr.Array]]:
    """The states of a database's rows and its coordinates, open; from now on its store raises where a file is not
    there that these rows need.

    To be called before anything else is read of a database that the root names.

    Raises:
        StoreError: the states are not there, or the names of the files of a case; metadata are not those of the second
            copy, or leave no room for what is there.
    """
    store = group.store_path.store
    assert isinstance(store, GuardedStore)
    lengths, nothing = lengths_of(group), np.zeros(0, dtype=bool)
    store.expect(group.path, Expected(nothing, lengths, {"status": (("case",), (schema.STATUS_ROWS,))}))
    status = states_of_rows(group, store.url)
    # Opened after the states were read, so that they have room for every row.
    arrays = open_arrays(group, coordinate_names(group))
    check_copies(store.url, group.path, group.attrs.asdict(), arrays)
    chunks = {name: (tuple(array.metadata.dimension_names), array.chunks) for name, array in arrays.items()}
    in_use = status != schema.PENDING
    store.expect(group.path, Expected(in_use, lengths, chunks))
    num_used = int(np.flatnonzero(in_use).max(initial=-1)) + 1
    for name, array in arrays.items():
        check_room(store.url, array, {"case": 0 if name == "status" else num_used, **lengths})
    texts = arrays["shards"][:]
    shards = {int(row): str(texts[row]) for row in np.flatnonzero(in_use)}
    store.expect(group.path, Expected(in_use, lengths, chunks, shards))
    return status, arrays


def states_of_rows(group: zarr.Group, url: str) -> UInt8[np.ndarray, " case"]:
    """The states of all rows. Their one chunk holds those behind the end of the array, too."""
    for last in (False, True):
        array = group["status"]  # is read again, since a writer may have added rows in between
        whole = zarr.Array(
            AsyncArray(metadata=array.metadata.update_shape((schema.STATUS_ROWS,)), store_path=array.store_path)
        )
        states = np.asarray(whole[:])
        num = array.shape[0]
        if (states[num:] == schema.PENDING).all():
            break
        if last:
            said = f"it has room for {num} rows, but more are in use"
            raise damaged(url, f"database {group.path!r}", [(f"{group.path}/status/zarr.json", said)])
    return states[:num]


def check_room(url: str, array: zarr.Array, needed: Mapping[str, int]) -> None:
    """Whether an array is as long as its database needs: behind its end Zarr reads nothing.

    Raises:
        StoreError: its zarr.json says less.
    """
    for axis, n in zip(array.metadata.dimension_names, array.shape, strict=True):
        if n < needed.get(axis, 0):
            said = f"it has room for {n} along {axis!r}, but {needed[axis]} are needed"
            raise damaged(url, f"the array {array.path!r}", [(f"{array.path}/zarr.json", said)])


def check_axis_names(group: zarr.Group) -> None:
    """Whether the names along the axes are those that the attributes list: a swapped file would swap the sequences.

    Raises:
        StoreError: they are not.
    """
    for axis, attribute in schema.NAMED_AXES.items():
        told = list(group.attrs.asdict().get(attribute, ["(an attribute that is gone)"]))
        # Where a writer died, or is at work, there may be names behind these.
        held = [str(name) for name in group[axis][: len(told)]]
        if held != told:
            url = group.store_path.store.url
            raise StoreError(
                f"{url}/{group.path}/{axis} names {', '.join(held)}, but the database's attributes "
                f"{', '.join(told)}: one of them is damaged or of another time. See: multiseg verify {url}; then: "
                f"multiseg repair {url}.",
                file=f"{group.path}/{axis}",
            )


def read_columns(group: zarr.Group) -> tuple[zarr.Group, dict[str, Any], zarr.Array]:
    """A database's group, what is known of each of its rows, both as they were at one moment, and the array `record`.

    Raises:
        StoreError: a file is not there that has to be.
    """
    is_first = True
    while True:
        group = zarr.open_group(group.store_path, mode="r", zarr_format=3, use_consolidated=False)
        try:
            status, arrays = watch(group)
        except StoreError as error:
            if error.code != DAMAGED or not is_first:
                raise
            is_first = False  # a writer may have changed the attributes and their copy in between
            continue
        held = read_arrays(arrays, arrays.keys() - {*READ_BY_CASE, "modality", "annotation", "status"})
        # Otherwise a case was committed or replaced while its columns were read.
        if np.array_equal(status, group["status"][:]):
            return group, held | {"status": status}, arrays["record"]
