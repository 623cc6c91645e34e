"""A database's arrays, open for writing. They are created and grown here, and every chunk of a case is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import numpy as np
import zarr

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.columns import REQUESTS_AT_ONCE, coordinate_names, lengths_of, participant_columns
from multiseg.store.copies import COPY, copy_of, layout_of
from multiseg.store.ingest.encoding import ArrayPlan

WRITE_ALL: Any = {"write_empty_chunks": True}


class DatabaseArrays:
    """The arrays of a database by name. Chunks of fill values are written too: a missing chunk means damage."""

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._opened: dict[str, zarr.Array] = {}
        self.revisions: dict[str, int] = {}

    def __getitem__(self, name: str) -> zarr.Array:
        if name not in self._opened:  # over a network, opening takes as long as writing
            self._opened[name] = self.group[name].with_config(WRITE_ALL)
        return self._opened[name]

    @property
    def columns(self) -> list[str]:
        """The participants' columns."""
        return participant_columns(self.group)

    @property
    def coordinates(self) -> list[str]:
        """All arrays but "image" and "label"."""
        return coordinate_names(self.group)

    @property
    def num_rows(self) -> int:
        return int(self["status"].shape[0])

    def names(self, axis: str) -> list[str]:
        """The names along the axis modality or annotation. Entries beyond these were left by a writer that died."""
        return list(self.group.attrs.get(schema.NAMED_AXES[axis], []))

    def write_row(self, row: int, values: Mapping[str, Any]) -> None:
        """Write one row of several arrays in parallel. A value may be shorter than the row; the rest stays as it is."""

        def write(name: str) -> None:
            self[name][(row, *map(slice, np.shape(values[name])))] = values[name]

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(write, values))

    def require(self, plan: ArrayPlan) -> None:
        """Create every missing array. This also completes the work of a writer that died half-way."""
        self.require_coordinates(plan.structure_chunk)
        for name in ("image", "label"):
            if name not in self.group:
                plan.create(self.group, name, (0, 0, 1, 1, 1))
        # Older stores get the attributes by which xarray decodes the image with their next ingest.
        if self["image"].attrs.asdict() != schema.IMAGE_ATTRIBUTES:
            self["image"].attrs.update(schema.IMAGE_ATTRIBUTES)

    def require_coordinates(self, structure_chunk: int = 1) -> None:
        """Create every missing coordinate."""
        for name, variable in schema.coordinates_of_database(self.group.attrs).items():
            if name in self.group:
                continue
            # A database has at least one row, so that its status has a chunk from the beginning.
            shape = [1 if name == "status" else schema.FIXED_AXES.get(axis, 0) for axis in variable.axes]
            self._create(name, variable, shape, chunk_of(name, variable, structure_chunk))

    def set_rows(self, num_rows: int) -> None:
        """Resize every array to this many rows."""
        for name in [*self.coordinates, "image", "label"]:
            array = self[name]
            if array.metadata.dimension_names[0] == "case" and array.shape[0] != num_rows:
                array.resize((num_rows, *array.shape[1:]))

    def _create(
        self, name: str, variable: schema.Variable, shape: Sequence[int], chunks: Sequence[int], overwrite: bool = False
    ) -> None:
        array = self.group.create_array(
            name, shape=tuple(shape), chunks=tuple(chunks), dtype=variable.dtype, fill_value=variable.fill,
            dimension_names=variable.axes, attributes={"long_name": variable.meaning}, overwrite=overwrite,
            compressors=schema.COORDINATE_CODECS,
        )  # fmt: skip
        self._opened[name] = array.with_config(WRITE_ALL)

    def grow_names(self, axis: str, names: Sequence[str]) -> None:
        """Append the new ones of these names to an axis; existing names keep their places."""
        old_names = self.names(axis)
        if len(old_names) < len(names):
            self[axis].resize((len(names),))
            # A writer that died may have written some of them, since chunks are written in any order: write all.
            self[axis][len(old_names) :] = np.array(names[len(old_names) :], dtype=object)

    def fit(self, plan: ArrayPlan, extent: Sequence[int] = (1, 1, 1), num_rows: int = 0) -> None:
        """Grow every array to the current rows, names and structures, and to the given extent in voxels."""
        size = {
            "case": max(num_rows, self.num_rows),
            "modality": len(plan.modalities),
            "annotation": len(plan.annotations),
            "structure": plan.num_structures,
        }
        size |= dict(zip("ijk", map(max, self["image"].shape[2:], extent), strict=True))
        for name in [*self.coordinates, "image", "label"]:
            array = self[name]
            axes = zip(array.metadata.dimension_names, array.shape, strict=True)
            shape = tuple(size.get(axis, length) for axis, length in axes)
            if shape != array.shape:
                array.resize(shape)
        self._finish_growing(plan, size)

    def _finish_growing(self, plan: ArrayPlan, size: Mapping[str, int]) -> None:
        """Write the new chunks of existing rows, and only then store the lengths of the axes as attributes."""
        new_attributes: dict[str, Any] = {
            schema.NAMED_AXES["modality"]: list(plan.modalities),
            schema.NAMED_AXES["annotation"]: list(plan.annotations),
            schema.NUM_STRUCTURES: plan.num_structures,
            "coordinates": " ".join(name for name in self.coordinates if name not in size),
        }
        attributes = self.group.attrs.asdict()
        if attributes | new_attributes == attributes:
            return
        for name in self.coordinates:
            self._write_new_chunks(name, lengths_of(self.group), size)
        self.group.attrs.update(new_attributes)

    def _write_new_chunks(self, name: str, before: Mapping[str, int], size: Mapping[str, int]) -> None:
        array = self[name]
        axes = array.metadata.dimension_names
        if axes[0] != "case" or name in schema.BY_CASE:
            return
        for dimension, (axis, chunk) in enumerate(zip(axes, array.chunks, strict=True)):
            if axis in before and (first := ceil(before[axis] / chunk) * chunk) < size[axis]:
                region = [slice(None)] * len(axes)
                region[dimension] = slice(first, None)
                array[tuple(region)] = array.fill_value

    def require_column(self, column: str, value: str | float) -> str | float:
        """Convert a value to the type of its participants' column; create the column if it does not exist.

        A number becomes text in a column of texts.

        Raises:
            StoreError: the value is a text, and the column holds numbers.
        """
        dtype = "string" if isinstance(value, str) else "float64"
        if column not in self.columns:
            fill = "" if dtype == "string" else float("nan")
            variable = schema.Variable(("case",), dtype, fill, "participants' column")
            # An array of this name that the attributes do not list was left by a writer that died.
            self._create(column, variable, [self.num_rows], [schema.ROWS], overwrite=True)
            self[column][:] = variable.fill
            names = sorted([*self.columns, column])
            coordinates = " ".join([*str(self.group.attrs["coordinates"]).split(), column])
            self.group.attrs.update({schema.PARTICIPANT_COLUMNS: names, "coordinates": coordinates})
            self.keep_copy()
        if self[column].dtype.kind != "f":
            return value if isinstance(value, str) else f"{value:g}"
        if isinstance(value, str):
            raise StoreError(
                f"the participants' column {column!r} holds numbers in the store, but a new value is {value!r}. "
                "Write a number, or leave the cell empty."
            )
        return value

    def require_template(self, template: Mapping[str, Any]) -> None:
        """Create the coordinates of a database whose cases are registered to a template, if they do not exist.

        Args:
            template: its name and sha256, for the attribute.
        """
        if schema.TEMPLATE in self.group.attrs:
            return
        for name, variable in schema.OF_TEMPLATE.items():
            shape = [self.num_rows, *(schema.FIXED_AXES[axis] for axis in variable.axes[1:])]
            # Arrays that the attribute does not yet announce were left by a writer that died.
            self._create(name, variable, shape, chunk_of(name, variable, 1), overwrite=True)
            self[name][:] = variable.fill
        coordinates = " ".join([*str(self.group.attrs.get("coordinates", "")).split(), *schema.OF_TEMPLATE])
        self.group.attrs.update({schema.TEMPLATE: dict(template), "coordinates": coordinates})

    def keep_copy(self) -> None:
        """Store a second copy of the database's attributes and its arrays' layout in the attributes of `record`.

        Call it after every change of an attribute, or of an array's metadata other than its shape.
        """
        names = [*self.coordinates, "image", "label"]
        copy = copy_of(self.group.attrs.asdict(), {name: layout_of(self[name]) for name in names})
        if self["record"].attrs.get(COPY) != copy:
            self["record"].attrs[COPY] = copy


def chunk_of(name: str, variable: schema.Variable, structure_chunk: int) -> list[int]:
    """The chunk shape of a new coordinate."""
    lengths = {"modality": 64, "annotation": 1, "structure": structure_chunk}
    lengths |= schema.FIXED_AXES | {"case": schema.ROWS_OF.get(name, schema.ROWS)}
    return [lengths[axis] for axis in variable.axes]
