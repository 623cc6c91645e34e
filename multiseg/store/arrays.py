"""A database's arrays, open for writing. They are created and grown here, and every chunk of a case is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.columns import coordinate_names, lengths_of, participant_columns
from multiseg.store.coordinate_chunks import (
    find_arrays,
    new_array,
    open_arrays,
    read_all,
    read_row,
    with_shape,
    write_metadata,
    write_regions,
)
from multiseg.store.copies import COPY, copy_of, layout_of
from multiseg.store.ingest.encoding import ArrayPlan

NAN = float("nan")
"""One object, since NaN equals nothing but itself: templates of columns are cached by their fill."""


class DatabaseArrays:
    """The arrays of a database by name. Chunks of fill values are written too: a missing chunk means damage."""

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._opened: dict[str, zarr.Array] = {}
        self.revisions: dict[str, int] = {}

    def __getitem__(self, name: str) -> zarr.Array:
        if name not in self._opened:  # over a network, opening takes as long as writing
            self._opened |= open_arrays(self.group, [name])
        return self._opened[name]

    def open(self, names: Sequence[str]) -> dict[str, zarr.Array]:
        """Arrays by name; those that are not open yet are opened at once."""
        self._opened |= open_arrays(self.group, [name for name in names if name not in self._opened])
        return {name: self._opened[name] for name in names}

    def read(self, name: str) -> Any:
        """All of an array."""
        return read_all({name: self[name]})[name]

    def row(self, name: str, row: int) -> Any:
        """One row of an array."""
        return read_row(self[name], row)

    def write(self, name: str, values: Any) -> None:
        """Write all of an array; a single value fills it."""
        array = self[name]
        write_regions({name: (array, tuple(slice(0, length) for length in array.shape), values)})

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
        """Write one row of several arrays. A value may be shorter than the row; the rest stays as it is."""
        arrays = self.open(list(values))
        regions = {name: (slice(row, row + 1), *(slice(0, n) for n in np.shape(values[name]))) for name in values}
        write_regions({name: (arrays[name], regions[name], values[name]) for name in values})

    def require(self, plan: ArrayPlan, num_rows: int = 1) -> None:
        """Create every missing array. This also completes the work of a writer that died half-way."""
        templates = self._templates(plan.structure_chunk) | {name: plan.template(name) for name in schema.VOLUMES}
        self._require(templates, _lengths(plan) | {"case": num_rows})
        # Older stores get the attributes by which xarray decodes the image with their next ingest.
        if self["image"].attrs.asdict() != schema.IMAGE_ATTRIBUTES:
            self["image"].attrs.update(schema.IMAGE_ATTRIBUTES)

    def require_coordinates(self, structure_chunk: int = 1) -> None:
        """Create every missing coordinate."""
        self._require(self._templates(structure_chunk), {"case": 1})

    def _templates(self, structure_chunk: int) -> dict[str, zarr.Array]:
        coordinates = schema.coordinates_of_database(self.group.attrs)
        return {
            name: _template(variable, chunk_of(name, variable, structure_chunk))
            for name, variable in coordinates.items()
        }

    def _require(self, templates: Mapping[str, zarr.Array], lengths: Mapping[str, int]) -> None:
        """Create the missing ones of these arrays. A database has at least one row, so that its status has a chunk from
        the beginning."""
        lengths = {**schema.FIXED_AXES, **lengths}
        self._opened |= find_arrays(self.group, [name for name in templates if name not in self._opened])
        new = {
            name: new_array(self.group, name, [lengths.get(axis, 0) for axis in array.metadata.dimension_names], array)
            for name, array in templates.items()
            if name not in self._opened
        }
        write_metadata(list(new.values()))
        self._opened |= new

    def set_rows(self, num_rows: int) -> None:
        """Resize every array to this many rows."""
        arrays = self.open([*self.coordinates, "image", "label"])
        by_case = {name: array for name, array in arrays.items() if array.metadata.dimension_names[0] == "case"}
        self._resize({name: (num_rows, *array.shape[1:]) for name, array in by_case.items()})

    def _resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        grown = {}
        for name, shape in shapes.items():
            array = self[name]
            if any(new < old for new, old in zip(shape, array.shape, strict=True)):
                array.resize(shape)  # which deletes the files beyond the new end
            elif shape != array.shape:
                grown[name] = with_shape(array, shape)
        write_metadata(list(grown.values()))
        self._opened |= grown

    def _create(self, name: str, variable: schema.Variable, shape: Sequence[int], chunks: tuple[int, ...]) -> None:
        """Create an array in place of one that a writer that died may have left."""
        sync(self.group.store_path.store.delete_dir(f"{self.group.path}/{name}"))
        self._opened[name] = new_array(self.group, name, shape, _template(variable, chunks))
        write_metadata([self._opened[name]])

    def grow_names(self, axis: str, names: Sequence[str]) -> None:
        """Append the new ones of these names to an axis; existing names keep their places."""
        old_names = self.names(axis)
        if len(old_names) < len(names):
            self._resize({axis: (len(names),)})
            # A writer that died may have written some of them, since chunks are written in any order: write all.
            region = (slice(len(old_names), len(names)),)
            write_regions({axis: (self[axis], region, np.array(names[len(old_names) :], dtype=object))})

    def fit(self, plan: ArrayPlan, extent: Sequence[int] = (1, 1, 1), num_rows: int = 0) -> None:
        """Grow every array to the current rows, names and structures, and to the given extent in voxels."""
        size = _lengths(plan) | {"case": max(num_rows, self.num_rows)}
        size |= dict(zip("ijk", map(max, self["image"].shape[2:], extent), strict=True))
        shapes = {}
        for name, array in self.open([*self.coordinates, "image", "label"]).items():
            axes = zip(array.metadata.dimension_names, array.shape, strict=True)
            shapes[name] = tuple(size.get(axis, length) for axis, length in axes)
        self._resize(shapes)
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
                region = [slice(0, length) for length in array.shape]
                region[dimension] = slice(first, array.shape[dimension])
                write_regions({name: (array, tuple(region), array.fill_value)})

    def require_column(self, column: str, value: str | float) -> str | float:
        """Convert a value to the type of its participants' column; create the column if it does not exist.

        A number becomes text in a column of texts.

        Raises:
            StoreError: the value is a text, and the column holds numbers.
        """
        dtype = "string" if isinstance(value, str) else "float64"
        if column not in self.columns:
            fill = "" if dtype == "string" else NAN
            variable = schema.Variable(("case",), dtype, fill, "participants' column")
            # An array of this name that the attributes do not list was left by a writer that died.
            self._create(column, variable, [self.num_rows], (schema.ROWS,))
            self.write(column, variable.fill)
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
            self._create(name, variable, shape, chunk_of(name, variable, 1))
            self.write(name, variable.fill)
        coordinates = " ".join([*str(self.group.attrs.get("coordinates", "")).split(), *schema.OF_TEMPLATE])
        self.group.attrs.update({schema.TEMPLATE: dict(template), "coordinates": coordinates})

    def keep_copy(self) -> None:
        """Store a second copy of the database's attributes and its arrays' layout in the attributes of `record`.

        Call it after every change of an attribute, or of an array's metadata other than its shape.
        """
        arrays = self.open([*self.coordinates, "image", "label"])
        copy = copy_of(self.group.attrs.asdict(), {name: layout_of(array) for name, array in arrays.items()})
        if self["record"].attrs.get(COPY) != copy:
            self["record"].attrs[COPY] = copy


@cache
def _template(variable: schema.Variable, chunks: tuple[int, ...]) -> zarr.Array:
    """An array of a coordinate without rows, in memory: creating many arrays through zarr takes a while."""
    return zarr.create_array(
        MemoryStore(), shape=(0,) * len(chunks), chunks=chunks, dtype=variable.dtype, fill_value=variable.fill,
        dimension_names=variable.axes, attributes={"long_name": variable.meaning}, compressors=schema.COORDINATE_CODECS,
    )  # fmt: skip


def _lengths(plan: ArrayPlan) -> dict[str, int]:
    """The lengths of the axes of a new database."""
    names = {"modality": len(plan.modalities), "annotation": len(plan.annotations)}
    return names | {"structure": plan.num_structures, "i": 1, "j": 1, "k": 1}


def chunk_of(name: str, variable: schema.Variable, structure_chunk: int) -> tuple[int, ...]:
    """The chunk shape of a new coordinate."""
    lengths = {"modality": 64, "annotation": 1, "structure": structure_chunk}
    lengths |= schema.FIXED_AXES | {"case": schema.ROWS_OF.get(name, schema.ROWS)}
    return tuple(lengths[axis] for axis in variable.axes)
