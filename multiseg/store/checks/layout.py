"""Whether a database is laid out as the schema says: its attributes, its arrays, and the lengths of their axes."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from multiseg.errors import StoreError
from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.checks.chunks import Block, decoded_blocks
from multiseg.store.checks.fault_collector import REPAIR, Faults, advice
from multiseg.store.columns import lengths_of, states_of_rows
from multiseg.store.damage import UNREADABLE, one_line
from multiseg.store.findings import Severity
from multiseg.store.guard import Expected
from multiseg.store.hierarchy import ROOT_KEY, check_head, open_root, zarr_store
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.space import MAX_VOXELS

FIXED = {"axis": 3, "row": 4, "column": 4, "header_byte": schema.HEADER_BYTES, "point": schema.FOREGROUND_POINTS}
MOST = {"case": schema.STATUS_ROWS, "modality": 4096, "annotation": 4096, "structure": 254}
"""Longer axes are none of ours: their lengths are damaged, and would fill the memory."""
BIG = (*schema.BY_CASE, "record")
"""The arrays that are read a case at a time."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A database as far as it can be relied on: arrays that fit the schema, and coordinates that could be read."""

    name: str
    arrays: Mapping[str, zarr.Array]
    columns: Mapping[str, Any]
    schemas: Mapping[str, LabelSchema]
    recipe: Recipe | None
    expected: Expected
    absent: Sequence[tuple[str, Block]]
    """The chunks of coordinates that are not there, by their array's name."""

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
    coordinates: Collection[str] = tuple(schema.COORDINATES),
) -> Layout:
    """Check a database's attributes and arrays, and read its coordinates.

    Args:
        coordinates: what there is of them; an older format had fewer.
    """
    attributes = group.attrs.asdict()
    schemas, recipe = _attributes(attributes, name, grid_mm, faults)
    own = attributes.get(schema.PARTICIPANT_COLUMNS, [])
    if not isinstance(own, list) or not all(isinstance(column, str) for column in own):
        faults.error(
            "BAD_ATTRIBUTES", f"{name}/zarr.json", f"{schema.PARTICIPANT_COLUMNS} is no list of names. {REPAIR}"
        )
        own = []
    arrays: dict[str, zarr.Array] = {}
    for array_name in [*coordinates, *own, "image", "label"]:
        array = _array(group, array_name, faults)
        if array is not None:
            arrays[array_name] = array
    _unknown(group, {*schema.COORDINATES, *own, "image", "label"}, faults)
    columns: dict[str, Any] = {}
    absent: list[tuple[str, Block]] = []
    for key, array in arrays.items():
        if key not in BIG and (values := _column(key, array, faults, absent)) is not None:
            columns[key] = values
    layout = Layout(name, arrays, columns, schemas, recipe, _needed_files(group, arrays, columns), absent)
    for key, block in absent:
        if "record" in coordinates and layout.expected.has(key, block.index):
            faults.error("MISSING_FILE", block.key, f"the file is not there. {REPAIR}")
    if "status" in columns:
        try:
            states_of_rows(group, name)
        except StoreError as error:
            faults.error("BAD_SHAPE", error.file, f"status has less room than rows are in use. {REPAIR}")
    _lengths(layout, faults)
    _names(layout, faults)
    return layout


def damaged_files_of_all(url: str) -> list[tuple[str, str]]:
    """The same of all databases that the root names, and of the root."""
    try:
        names, _grid_mm = check_head(url, open_root(url, "r").attrs[ROOT_KEY])
    except StoreError as error:
        return [(error.file, str(error))] if error.file else []
    return [found for name in names for found in damaged_files(url, name)]


def damaged_files(url: str, name: str) -> list[tuple[str, str]]:
    """The files of a database's metadata and coordinates that are damaged, and what is wrong with each."""
    faults = Faults(name)
    try:
        store = zarr_store(url, read_only=True)
        group = zarr.open_group(store, path=name, mode="r", zarr_format=3, use_consolidated=False)
        read_layout(group, name, None, faults)
    except UNREADABLE as error:
        return [(f"{name}/zarr.json", one_line(error))]
    wrong = [finding for finding in faults.found if finding.severity is Severity.ERROR]
    return [(finding.file, finding.message.removesuffix(f" {REPAIR}")) for finding in wrong]


def damaged_files_of_case(url: str, name: str, row: int) -> list[tuple[str, str]]:
    """The same of what a case holds in files of its own, and if they are sound, of its database."""
    faults = Faults(name)
    try:
        group = zarr.open_group(
            zarr_store(url, read_only=True), path=name, mode="r", zarr_format=3, use_consolidated=False
        )
        for array in BIG:
            list(decoded_blocks(group[array], faults, row))
    except UNREADABLE:
        return damaged_files(url, name)
    found = [(one.file, one.message.removesuffix(f" {advice(one.file.split('/')[1])}")) for one in faults.found]
    return found or damaged_files(url, name)


def _attributes(
    held: Mapping[str, Any], name: str, grid_mm: Sequence[float] | None, faults: Faults
) -> tuple[dict[str, LabelSchema], Recipe | None]:
    file = f"{name}/zarr.json"
    if not isinstance(held.get("pathology"), str):
        faults.error("BAD_ATTRIBUTES", file, f"no pathology is named ({held.get('pathology')!r}). {REPAIR}")
    if held.get("codec") not in schema.CODECS:
        faults.error(
            "BAD_ATTRIBUTES", file, f"the codec {held.get('codec')!r} is none of {', '.join(schema.CODECS)}. {REPAIR}"
        )
    recipe = None
    try:
        recipe = Recipe.from_json(held["recipe"])
    except UNREADABLE as error:
        faults.error("BAD_ATTRIBUTES", file, f"the recipe {held.get('recipe')!r} is none: {one_line(error)}. {REPAIR}")
    if recipe is not None and grid_mm is not None and list(recipe.spacing_mm) != list(grid_mm):
        said = f"the recipe has voxels of {list(recipe.spacing_mm)} mm, the store of {list(grid_mm)} mm"
        faults.error("BAD_ATTRIBUTES", file, f"{said}. {REPAIR}")
    schemas: dict[str, LabelSchema] = {}
    listed = held.get("label_schemas")
    if not isinstance(listed, dict):
        faults.error("BAD_ATTRIBUTES", file, f"label_schemas is no table of annotations. {REPAIR}")
        listed = {}
    for annotation, codes in listed.items():
        try:
            schemas[annotation] = LabelSchema.from_json(codes)
        except UNREADABLE as error:
            said = f"the codes of the annotation {annotation!r} cannot be read: {one_line(error)}"
            faults.error("BAD_ATTRIBUTES", file, f"{said}. {REPAIR}")
    return schemas, recipe


def _array(group: zarr.Group, name: str, faults: Faults) -> zarr.Array | None:
    """An array whose metadata fits the schema; None, and noted, otherwise."""
    file = f"{group.path}/{name}/zarr.json"
    try:
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise TypeError("it is a group")
        wrong = _misfits(name, array)
    except (KeyError, FileNotFoundError):
        faults.error("MISSING_ARRAY", file, f"the array {name!r} is not there. {REPAIR}")
        return None
    except UNREADABLE as error:
        faults.error("BAD_METADATA", file, f"the array {name!r} cannot be opened: {one_line(error)}. {REPAIR}")
        return None
    for said in wrong:
        faults.error("BAD_SCHEMA", file, f"{name}: {said}. {REPAIR}")
    if name == "image" and not wrong and "scale_factor" not in array.attrs:
        faults.warning(
            "FLOAT16_IN_XARRAY", file,
            "xarray opens the image as float16, in which sums overflow. Any ingest into this database adds the "
            "attribute that makes it float64; until then use image.astype('float64').",
        )  # fmt: skip
    return None if wrong else array


def _misfits(name: str, array: zarr.Array) -> list[str]:
    """What of an array is not as the schema says."""
    axes, dtype, fill = _expected(name, array)
    held_type, wrong = array.metadata.data_type.to_json(zarr_format=3), []
    if tuple(array.metadata.dimension_names or ()) != axes:
        return [f"its axes are {array.metadata.dimension_names} instead of {axes}"]
    if held_type not in dtype:
        wrong.append(f"it holds {held_type} instead of {' or '.join(dtype)}")
    elif not _same(array.fill_value, fill):
        wrong.append(f"what is not written reads as {np.asarray(array.fill_value).item()!r} instead of {fill!r}")
    if name in ("image", "label") and "crc32c" not in json.dumps([codec.to_dict() for codec in array.compressors]):
        wrong.append("its chunks have no checksum (crc32c)")
    for axis, n in zip(axes, array.shape, strict=True):
        if n > MOST.get(axis, MAX_VOXELS) or (axis in FIXED and n != FIXED[axis]):
            wrong.append(
                f"its axis {axis!r} has the length {n}" + (f" instead of {FIXED[axis]}" if axis in FIXED else "")
            )
    if name in ("image", "label") and math.prod(array.shape[2:]) > MAX_VOXELS:
        wrong.append(f"its room for a case, {array.shape[2:]} voxels, is none that a head needs")
    return wrong


def _expected(name: str, array: zarr.Array) -> tuple[tuple[str, ...], tuple[str, ...], Any]:
    """Axes, types and fill value of an array."""
    if name in schema.COORDINATES:
        variable = schema.COORDINATES[name]
        return variable.axes, (variable.dtype,), variable.fill
    if name in ("image", "label"):
        axes = schema.IMAGE_AXES if name == "image" else schema.LABEL_AXES
        return axes, ("float16" if name == "image" else "uint8",), 0
    is_text = array.metadata.data_type.to_json(zarr_format=3) == "string"
    return ("case",), ("string", "float64"), "" if is_text else float("nan")


def _same(held: Any, expected: Any) -> bool:
    return bool(held == expected or (held != held and expected != expected))


def _unknown(group: zarr.Group, known: set[str], faults: Faults) -> None:
    for name in listed(group):
        if name not in known:
            said = f"{name!r} is none of the store's arrays; a writer that died left it, or somebody put it there"
            faults.warning(
                "UNKNOWN_ARRAY", f"{group.path}/{name}", f"{said}. Move it beside the store: multiseg repair STORE."
            )


def listed(group: zarr.Group) -> list[str]:
    """The names of what lies in a group's folder; none where the server cannot list."""
    store = group.store_path.store
    if not store.supports_listing:
        return []

    async def names() -> list[str]:
        return [name async for name in store.list_dir(group.path)]

    return sorted(name.rstrip("/") for name in sync(names()) if name.rstrip("/") not in ("zarr.json", ""))


def _needed_files(group: zarr.Group, arrays: Mapping[str, zarr.Array], columns: Mapping[str, Any]) -> Expected:
    """What has to be there, by the states of the rows and the names of their files."""
    in_use = np.asarray(columns.get("status", np.zeros(0, dtype=np.uint8))) != schema.PENDING
    chunks = {name: (tuple(array.metadata.dimension_names), array.chunks) for name, array in arrays.items()}
    texts = columns.get("shards", ())
    named = {int(row): str(texts[row]) for row in np.flatnonzero(in_use) if row < len(texts)}
    return Expected(in_use, lengths_of(group), chunks, named)


def _column(name: str, array: zarr.Array, faults: Faults, absent: list[tuple[str, Block]]) -> Any:
    """A coordinate's values, or None when they cannot be read; its chunks that are not there are noted in `absent`."""
    before = len(faults.found)
    blocks = list(decoded_blocks(array, faults))
    absent += [(name, block) for block in blocks if block.is_missing]
    if len(faults.found) > before:
        return None
    return blocks[0].values if len(blocks) == 1 and not blocks[0].is_missing else array[:]


def _lengths(layout: Layout, faults: Faults) -> None:
    """Axes that arrays share have one length; where a writer died, some have room that others do not have yet."""
    if not {"status", "modality", "annotation"} <= set(layout.columns):
        return
    held: dict[str, dict[str, int]] = {}
    for name, array in layout.arrays.items():
        for axis, n in zip(array.metadata.dimension_names, array.shape, strict=True):
            held.setdefault(axis, {})[name] = n
    needed = _needed(layout)
    needed |= {axis: max(n, needed.get(axis, 0)) for axis, n in layout.expected.lengths.items()}
    for axis, by_array in held.items():
        if axis in FIXED or len(set(by_array.values())) < 2:
            continue
        short = [name for name, n in by_array.items() if n < needed.get(axis, 0)]
        lengths = ", ".join(f"{name} {n}" for name, n in sorted(by_array.items(), key=lambda item: item[1]))
        said = f"arrays differ in the length of the axis {axis!r}: {lengths}"
        if short:
            faults.error("BAD_SHAPE", f"{layout.name}/{short[0]}/zarr.json", f"{said}. {REPAIR}")
        else:
            faults.note("WRITER_DIED", layout.name, f"{said}. No case is hurt; the next ingest mends it.")
    for axis, n in needed.items():
        for name, length in held.get(axis, {}).items():
            if length < n and len(set(held[axis].values())) == 1:
                said = f"{name} has room for {length} along {axis!r}, but the cases need {n}"
                faults.error("BAD_SHAPE", f"{layout.name}/{name}/zarr.json", f"{said}. {REPAIR}")
                break


def _needed(layout: Layout) -> dict[str, int]:
    """How long the axes have to be for the committed cases."""
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


def _names(layout: Layout, faults: Faults) -> None:
    """The names along the modality and annotation axes."""
    for axis, names in (("modality", layout.modalities), ("annotation", layout.annotations)):
        file = f"{layout.name}/{axis}"
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            faults.error("BAD_NAME", file, f"{', '.join(twice)} stands twice along the axis {axis!r}. {REPAIR}")
        if "" in names[: _needed(layout).get(axis, 0)]:
            faults.error("BAD_NAME", file, f"a {axis} that cases have is without a name. {REPAIR}")
    without = [name for name in layout.annotations if name and name not in layout.schemas]
    if without:
        said = f"no codes are given for the annotation {', '.join(without)}"
        faults.error("BAD_ATTRIBUTES", f"{layout.name}/zarr.json", f"{said}. {REPAIR}")
