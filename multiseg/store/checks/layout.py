"""Checking the layout of a database against the schema: attributes, arrays, and the lengths of their axes."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from multiseg.errors import StoreError
from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.checks.chunks import Block, decoded_blocks
from multiseg.store.checks.fault_collector import REPAIR, Faults, advice
from multiseg.store.columns import are_equal, lengths_of, states_of_rows
from multiseg.store.coordinate_chunks import open_arrays
from multiseg.store.damage import UNREADABLE, one_line
from multiseg.store.findings import Severity
from multiseg.store.guard import Expected
from multiseg.store.hierarchy import ROOT_KEY, check_head, collect, open_group, open_root, zarr_store
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.space import MAX_VOXELS

MOST = {"case": schema.STATUS_ROWS, "modality": 4096, "annotation": 4096, "structure": 254}
"""The maximum lengths of axes. A larger length is damaged, and reading the array would fill the memory."""
BIG = (*schema.BY_CASE, "record")
"""The arrays that are read case by case."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The sound part of a database: arrays that fit the schema, and coordinates that could be read."""

    name: str
    arrays: Mapping[str, zarr.Array]
    columns: Mapping[str, Any]
    schemas: Mapping[str, LabelSchema]
    recipe: Recipe | None
    expected: Expected
    absent: Sequence[tuple[str, Block]]
    """The missing chunks of coordinates, each with its array's name."""

    @property
    def status(self) -> Any:
        return self.columns.get("status", np.zeros(0, dtype=np.uint8))

    @property
    def modalities(self) -> list[str]:
        return [str(name) for name in self.columns.get("modality", [])]

    @property
    def annotations(self) -> list[str]:
        return [str(name) for name in self.columns.get("annotation", [])]

    def rows(self, status: int) -> list[int]:
        return [int(row) for row in np.flatnonzero(self.status == status)]

    def case(self, row: int) -> str:
        names = self.columns.get("case")
        return str(names[row]) if names is not None and row < len(names) else f"row {row}"


def read_layout(
    group: zarr.Group,
    name: str,
    grid_mm: Sequence[float] | None,
    faults: Faults,
    coordinates: Collection[str] = (),
) -> Layout:
    """Check a database's attributes and arrays, and read its coordinates.

    Args:
        coordinates: the coordinates that the database must have; empty: those of the newest format. Older formats
            have fewer.
    """
    attributes = group.attrs.asdict()
    every = schema.coordinates_of_database(attributes)
    coordinates = coordinates or tuple(every)
    schemas, recipe = _check_attributes(attributes, name, grid_mm, faults)
    own_columns = attributes.get(schema.PARTICIPANT_COLUMNS, [])
    if not isinstance(own_columns, list) or not all(isinstance(column, str) for column in own_columns):
        faults.damage("BAD_ATTRIBUTES", f"{name}/zarr.json", f"{schema.PARTICIPANT_COLUMNS} is not a list of names")
        own_columns = []
    opened = {key: _open_array(group, key, faults) for key in [*coordinates, *own_columns, "image", "label"]}
    arrays = {key: array for key, array in opened.items() if array is not None}
    _report_unknown_arrays(group, {*every, *own_columns, "image", "label"}, faults)
    columns: dict[str, Any] = {}
    absent: list[tuple[str, Block]] = []
    for key, array in arrays.items():
        if key not in BIG and (values := _read_column(key, array, faults, absent)) is not None:
            columns[key] = values
    layout = Layout(name, arrays, columns, schemas, recipe, _needed_files(group, arrays, columns), absent)
    for key, block in absent:
        if "record" in coordinates and layout.expected.has(key, block.index):
            faults.damage("MISSING_FILE", block.key, "the file is missing")
    if "status" in columns:
        try:
            states_of_rows(group, name)
        except StoreError as error:
            faults.damage("BAD_SHAPE", error.file, "status has room for fewer rows than are in use")
    _check_lengths(layout, faults)
    _check_names(layout, faults)
    return layout


def damaged_files_of_all(url: str) -> list[tuple[str, str]]:
    """As `damaged_files`, for the root and all databases that it names."""
    try:
        names, _grid_mm = check_head(url, open_root(url, "r").attrs[ROOT_KEY])
    except StoreError as error:
        return [(error.file, str(error))] if error.file else []
    return [damaged_file for name in names for damaged_file in damaged_files(url, name)]


def damaged_files(url: str, name: str) -> list[tuple[str, str]]:
    """The damaged files of a database's metadata and coordinates, and what is wrong with each."""
    faults = Faults(name)
    try:
        read_layout(open_group(zarr_store(url, read_only=True), name), name, None, faults)
    except UNREADABLE as error:
        return [(f"{name}/zarr.json", one_line(error))]
    wrong = [finding for finding in faults.found if finding.severity is Severity.ERROR]
    return [(finding.file, finding.message.removesuffix(f" {REPAIR}")) for finding in wrong]


def damaged_files_of_case(url: str, name: str, row: int) -> list[tuple[str, str]]:
    """As `damaged_files`, for the files of one case or, if they are sound, of its database."""
    faults = Faults(name)
    try:
        group = open_group(zarr_store(url, read_only=True), name)
        for array in BIG:
            list(decoded_blocks(open_arrays(group, [array])[array], faults, row))
    except UNREADABLE:
        return damaged_files(url, name)
    files = [(found.file, found.message.removesuffix(f" {advice(found.file.split('/')[1])}")) for found in faults.found]
    return files or damaged_files(url, name)


def _check_attributes(
    attributes: Mapping[str, Any], name: str, grid_mm: Sequence[float] | None, faults: Faults
) -> tuple[dict[str, LabelSchema], Recipe | None]:
    file = f"{name}/zarr.json"
    if not isinstance(attributes.get("pathology"), str):
        faults.damage("BAD_ATTRIBUTES", file, f"the pathology is {attributes.get('pathology')!r}")
    if attributes.get("codec") not in schema.CODECS:
        problem = f"the codec {attributes.get('codec')!r} is not one of {', '.join(schema.CODECS)}"
        faults.damage("BAD_ATTRIBUTES", file, problem)
    recipe = None
    try:
        recipe = Recipe.from_json(attributes["recipe"])
    except UNREADABLE as error:
        faults.damage("BAD_ATTRIBUTES", file, f"invalid recipe {attributes.get('recipe')!r}: {one_line(error)}")
    if recipe is not None and grid_mm is not None and list(recipe.spacing_mm) != list(grid_mm):
        problem = f"the recipe has voxels of {list(recipe.spacing_mm)} mm, the store of {list(grid_mm)} mm"
        faults.damage("BAD_ATTRIBUTES", file, problem)
    schemas: dict[str, LabelSchema] = {}
    codes_by_annotation = attributes.get("label_schemas")
    if not isinstance(codes_by_annotation, dict):
        faults.damage("BAD_ATTRIBUTES", file, "label_schemas is not a table of annotations")
        codes_by_annotation = {}
    for annotation, codes in codes_by_annotation.items():
        try:
            schemas[annotation] = LabelSchema.from_json(codes)
        except UNREADABLE as error:
            problem = f"the codes of the annotation {annotation!r} cannot be read: {one_line(error)}"
            faults.damage("BAD_ATTRIBUTES", file, problem)
    return schemas, recipe


def _open_array(group: zarr.Group, name: str, faults: Faults) -> zarr.Array | None:
    """An array whose metadata fit the schema; otherwise None, and the fault is reported."""
    file = f"{group.path}/{name}/zarr.json"
    try:
        array = open_arrays(group, [name])[name]
        wrong = _differences(name, array)
    except (KeyError, FileNotFoundError):
        faults.damage("MISSING_ARRAY", file, f"the array {name!r} is missing")
        return None
    except UNREADABLE as error:
        faults.damage("BAD_METADATA", file, f"the array {name!r} cannot be opened: {one_line(error)}")
        return None
    for problem in wrong:
        faults.damage("BAD_SCHEMA", file, f"{name}: {problem}")
    if name == "image" and not wrong and "scale_factor" not in array.attrs:
        faults.warning(
            "FLOAT16_IN_XARRAY", file,
            "xarray opens the image as float16, in which sums overflow. The next ingest into this database adds the "
            "attribute that makes it float64. Until then, use image.astype('float64').",
        )  # fmt: skip
    return None if wrong else array


def _differences(name: str, array: zarr.Array) -> list[str]:
    """The differences of an array from the schema."""
    axes, dtype, fill = _expected_metadata(name, array)
    held_type, wrong = array.metadata.data_type.to_json(zarr_format=3), []
    if tuple(array.metadata.dimension_names or ()) != axes:
        return [f"its axes are {array.metadata.dimension_names} instead of {axes}"]
    if held_type not in dtype:
        wrong.append(f"its type is {held_type} instead of {' or '.join(dtype)}")
    elif not are_equal(array.fill_value, fill):
        wrong.append(f"its fill value is {np.asarray(array.fill_value).item()!r} instead of {fill!r}")
    if name in ("image", "label") and "crc32c" not in json.dumps([codec.to_dict() for codec in array.compressors]):
        wrong.append("its chunks have no checksum (crc32c)")
    for axis, n in zip(axes, array.shape, strict=True):
        if n > MOST.get(axis, MAX_VOXELS) or n != schema.FIXED_AXES.get(axis, n):
            instead = f" instead of {schema.FIXED_AXES[axis]}" if axis in schema.FIXED_AXES else ""
            wrong.append(f"its axis {axis!r} has the length {n}{instead}")
    if name in ("image", "label") and math.prod(array.shape[2:]) > MAX_VOXELS:
        wrong.append(f"its room for a case, {array.shape[2:]} voxels, is larger than any head needs")
    return wrong


def _expected_metadata(name: str, array: zarr.Array) -> tuple[tuple[str, ...], tuple[str, ...], Any]:
    """Axes, types and fill value of an array."""
    variable = (schema.COORDINATES | schema.OF_TEMPLATE | schema.VOLUMES).get(name)
    if variable is not None:
        return variable.axes, (variable.dtype,), variable.fill
    is_text = array.metadata.data_type.to_json(zarr_format=3) == "string"
    return ("case",), ("string", "float64"), "" if is_text else float("nan")


def _report_unknown_arrays(group: zarr.Group, known: set[str], faults: Faults) -> None:
    for name in listed(group):
        if name not in known:
            problem = f"{name!r} is not one of the store's arrays; a writer that died left it, or somebody put it there"
            to_do = "Move it beside the store: multiseg repair STORE."
            faults.warning("UNKNOWN_ARRAY", f"{group.path}/{name}", f"{problem}. {to_do}")


def listed(group: zarr.Group) -> list[str]:
    """The names in a group's folder; none if the server cannot list."""
    store = group.store_path.store
    if not store.supports_listing:
        return []
    return [name for name in collect(store.list_dir(group.path)) if name != "zarr.json"]


def _needed_files(group: zarr.Group, arrays: Mapping[str, zarr.Array], columns: Mapping[str, Any]) -> Expected:
    """The files that must exist, by the states of the rows and the names of their files."""
    in_use = np.asarray(columns.get("status", np.zeros(0, dtype=np.uint8))) != schema.PENDING
    chunks = {name: (tuple(array.metadata.dimension_names), array.chunks) for name, array in arrays.items()}
    texts = columns.get("shards", ())
    shards = {int(row): str(texts[row]) for row in np.flatnonzero(in_use) if row < len(texts)}
    return Expected(in_use, lengths_of(group), chunks, shards)


def _read_column(name: str, array: zarr.Array, faults: Faults, absent: list[tuple[str, Block]]) -> Any:
    """A coordinate's values; None if they cannot be read. Its missing chunks are added to `absent`."""
    before = len(faults.found)
    blocks = list(decoded_blocks(array, faults))
    absent += [(name, block) for block in blocks if block.is_missing]
    if len(faults.found) > before:
        return None
    values = np.full(array.shape, array.fill_value, array.dtype)
    for block in blocks:
        if not block.is_missing:
            values[block.region] = block.values
    return values


def _check_lengths(layout: Layout, faults: Faults) -> None:
    """Check that arrays agree on the lengths of axes. After a writer died, some may be longer than others."""
    if not {"status", "modality", "annotation"} <= set(layout.columns):
        return
    lengths_of_axis: dict[str, dict[str, int]] = {}
    for name, array in layout.arrays.items():
        for axis, length in zip(array.metadata.dimension_names, array.shape, strict=True):
            lengths_of_axis.setdefault(axis, {})[name] = length
    needed = _needed_lengths(layout)
    needed |= {axis: max(length, needed.get(axis, 0)) for axis, length in layout.expected.lengths.items()}
    for axis, by_array in lengths_of_axis.items():
        if axis in schema.FIXED_AXES or len(set(by_array.values())) < 2:
            continue
        short = [name for name, length in by_array.items() if length < needed.get(axis, 0)]
        lengths = ", ".join(f"{name} {length}" for name, length in sorted(by_array.items(), key=lambda item: item[1]))
        problem = f"arrays differ in the length of the axis {axis!r}: {lengths}"
        if short:
            faults.damage("BAD_SHAPE", f"{layout.name}/{short[0]}/zarr.json", problem)
        else:
            faults.note("WRITER_DIED", layout.name, f"{problem}. No case is affected; the next ingest corrects it.")
    for axis, needed_length in needed.items():
        for name, length in lengths_of_axis.get(axis, {}).items():
            if length < needed_length and len(set(lengths_of_axis[axis].values())) == 1:
                problem = f"{name} has room for {length} along {axis!r}, but the cases need {needed_length}"
                faults.damage("BAD_SHAPE", f"{layout.name}/{name}/zarr.json", problem)
                break


def _needed_lengths(layout: Layout) -> dict[str, int]:
    """The lengths of axes that the committed cases need."""
    rows = layout.rows(schema.COMMITTED)
    needed = {"case": max(rows, default=-1) + 1}
    for axis, column in (("modality", "available"), ("annotation", "annotated")):
        used = layout.columns.get(column)
        if used is not None and rows and len(used) > rows[-1]:
            needed[axis] = int(np.flatnonzero(used[rows].any(axis=0)).max(initial=-1)) + 1
    extent = layout.columns.get("extent")
    if extent is not None and rows and len(extent) > rows[-1]:
        needed |= {axis: int(n) for axis, n in zip("ijk", extent[rows].max(axis=0), strict=True)}
    return needed


def _check_names(layout: Layout, faults: Faults) -> None:
    """Check the names along the axes modality and annotation."""
    for axis, names in (("modality", layout.modalities), ("annotation", layout.annotations)):
        file = f"{layout.name}/{axis}"
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            faults.damage("BAD_NAME", file, f"{', '.join(twice)} occurs twice along the axis {axis!r}")
        if "" in names[: _needed_lengths(layout).get(axis, 0)]:
            faults.damage("BAD_NAME", file, f"a {axis} that cases have does not have a name")
    without = [name for name in layout.annotations if name and name not in layout.schemas]
    if without:
        problem = f"there are no codes for the annotation {', '.join(without)}"
        faults.damage("BAD_ATTRIBUTES", f"{layout.name}/zarr.json", problem)
