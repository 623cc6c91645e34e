"""A database's arrays other than the volumes, opened by name, since a plain web server lists no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from jaxtyping import UInt8

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.coordinate_chunks import open_arrays, read_all, with_shape
from multiseg.store.copies import check_copies
from multiseg.store.damage import DAMAGED, damaged
from multiseg.store.guard import Expected, GuardedStore
from multiseg.store.hierarchy import open_group

READ_BY_CASE = ("foreground", "native_header", "sources", "record")
"""Large arrays, rarely needed for all cases at once: they are read case by case."""


def participant_columns(group: zarr.Group) -> list[str]:
    """The columns from a database's table of participants."""
    return list(group.attrs.get(schema.PARTICIPANT_COLUMNS, []))


def text_columns(group: zarr.Group) -> list[str]:
    """The participants' columns of a database that hold text."""
    arrays = open_arrays(group, participant_columns(group))
    return [name for name, array in arrays.items() if array.dtype.kind != "f"]


def coordinate_names(group: zarr.Group) -> list[str]:
    """All arrays of a database except "image" and "label"."""
    return [*schema.coordinates_of_database(group.attrs), *participant_columns(group)]


def read_arrays(arrays: Mapping[str, zarr.Array], names: Iterable[str]) -> dict[str, Any]:
    """The contents of open arrays by name, read at once."""
    return read_all({name: arrays[name] for name in names})


def read_columns_of(group: zarr.Group, names: Sequence[str]) -> dict[str, Any]:
    """The contents of arrays of a group by name, opened and read at once."""
    return read_all(open_arrays(group, names))


def are_equal(one: Any, other: Any) -> bool:
    """Whether two values or arrays are equal; NaN equals NaN."""
    first, second = np.asarray(one), np.asarray(other)
    return first.shape == second.shape and bool(np.all((first == second) | ((first != first) & (second != second))))


def lengths_of(group: zarr.Group) -> dict[str, int]:
    """The lengths of the axes modality, annotation and structure that every array has reached."""
    attributes = group.attrs.asdict()
    named = {axis: len(attributes.get(attribute, ())) for axis, attribute in schema.NAMED_AXES.items()}
    return named | {"structure": int(attributes.get(schema.NUM_STRUCTURES, 0))}


def watch(group: zarr.Group) -> tuple[UInt8[np.ndarray, " case"], dict[str, zarr.Array]]:
    """The states of a database's rows, and its open coordinates. From now on the store raises an error for a missing
    file that these rows need.

    Call it before anything else is read of a database that the root names.

    Raises:
        StoreError: the states, or the names of a case's files, are missing; the metadata differ from their second
            copy, or an array is too short for its rows.
    """
    store = group.store_path.store
    assert isinstance(store, GuardedStore)
    lengths, nothing = lengths_of(group), np.zeros(0, dtype=bool)
    store.expect(group.path, Expected(nothing, lengths, {"status": (("case",), (schema.STATUS_ROWS,))}))
    status = states_of_rows(group, store.url)
    # Open them after reading the states, so that they have room for every row.
    arrays = open_arrays(group, coordinate_names(group))
    check_copies(store.url, group.path, group.attrs.asdict(), arrays)
    chunks = {name: (tuple(array.metadata.dimension_names), array.chunks) for name, array in arrays.items()}
    in_use = status != schema.PENDING
    store.expect(group.path, Expected(in_use, lengths, chunks))
    num_used = int(np.flatnonzero(in_use).max(initial=-1)) + 1
    for name, array in arrays.items():
        check_room(store.url, array, {"case": 0 if name == "status" else num_used, **lengths})
    texts = read_all({"shards": arrays["shards"]})["shards"]
    shards = {int(row): str(texts[row]) for row in np.flatnonzero(in_use)}
    store.expect(group.path, Expected(in_use, lengths, chunks, shards))
    return status, arrays


def states_of_rows(group: zarr.Group, url: str) -> UInt8[np.ndarray, " case"]:
    """The states of all rows. Their one chunk shows whether rows beyond the end of the array are in use."""
    for is_last_try in (False, True):
        # Opened again, since a writer may have added rows in between.
        array = open_arrays(group, ["status"])["status"]
        states = np.asarray(read_all({"status": with_shape(array, (schema.STATUS_ROWS,))})["status"])
        num_rows = array.shape[0]
        if (states[num_rows:] == schema.PENDING).all():
            break
        if is_last_try:
            problem = f"it has room for {num_rows} rows, but more are in use"
            raise damaged(url, f"database {group.path!r}", [(f"{group.path}/status/zarr.json", problem)])
    return states[:num_rows]


def check_room(url: str, array: zarr.Array, needed: Mapping[str, int]) -> None:
    """Raises StoreError if an array is shorter than its database needs: Zarr reads nothing beyond its end."""
    for axis, length in zip(array.metadata.dimension_names, array.shape, strict=True):
        if length < needed.get(axis, 0):
            problem = f"it has room for {length} along {axis!r}, but {needed[axis]} are needed"
            raise damaged(url, f"the array {array.path!r}", [(f"{array.path}/zarr.json", problem)])


def check_axis_names(group: zarr.Group) -> None:
    """Raises StoreError if the names along an axis differ from those in the attributes.

    A swapped file would otherwise swap the sequences.
    """
    stored = read_columns_of(group, list(schema.NAMED_AXES))
    for axis, attribute in schema.NAMED_AXES.items():
        expected = list(group.attrs.asdict().get(attribute, ["(a missing attribute)"]))
        # A writer that died, or is at work, may have added further names.
        names = [str(name) for name in stored[axis][: len(expected)]]
        if names != expected:
            url = group.store_path.store.url
            raise StoreError(
                f"{url}/{group.path}/{axis} names {', '.join(names)}, but the database's attributes "
                f"name {', '.join(expected)}: one of the two files is damaged or out of date. Check the store with: "
                f"multiseg verify {url}; then: multiseg repair {url}.",
                file=f"{group.path}/{axis}",
            )


def read_columns(group: zarr.Group) -> tuple[zarr.Group, dict[str, Any], zarr.Array]:
    """A database's group and the columns of its rows, both from one moment, and the array `record`.

    Raises:
        StoreError: a file is missing.
    """
    is_first = True
    while True:
        group = open_group(group.store_path)
        try:
            status, arrays = watch(group)
        except StoreError as error:
            if error.code != DAMAGED or not is_first:
                raise
            is_first = False  # a writer may have changed the attributes and their copy in between
            continue
        columns = read_arrays(arrays, arrays.keys() - {*READ_BY_CASE, "modality", "annotation", "status"})
        # If the states differ, a case was committed or replaced while the columns were read: read again.
        if np.array_equal(status, read_columns_of(group, ["status"])["status"]):
            return group, columns | {"status": status}, arrays["record"]
