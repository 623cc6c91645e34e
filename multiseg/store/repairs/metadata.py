"""Restoring the zarr.json files of a database and its arrays from their second copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from zarr.core.array import AsyncArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import MemoryStore, StorePath

from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.checks.layout import MOST
from multiseg.store.copies import COPY, continues, copy_of, layout_of, layout_of_metadata, sound_copy
from multiseg.store.damage import UNREADABLE
from multiseg.store.ingest.encoding import ArrayPlan
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.repairs.place import Place, json_bytes

LISTS = (*schema.NAMED_AXES.values(), schema.PARTICIPANT_COLUMNS)


def repair_metadata(place: Place, name: str) -> bool:
    """Restore the zarr.json files of a database. Returns whether that was possible."""
    copy = _read_copy(place.json(f"{name}/record/zarr.json"))
    attributes = _repair_attributes(place, name, copy)
    if attributes is None:
        place.log.lost(name, "", f"{name}/zarr.json", "its attributes and their second copy are both damaged")
        return False
    layouts = _find_layouts(place, name, attributes, copy)
    missing = sorted(array for array, layout in layouts.items() if layout is None)
    if missing:
        place.log.lost(name, "", f"{name}/{missing[0]}/zarr.json", "nothing tells how its files are compressed")
        return False
    sizes = _minimum_lengths(place, name, attributes)
    for array, layout in layouts.items():
        assert layout is not None
        _repair_array(place, name, array, layout, sizes)
    return True


def _read_copy(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The second copy of attributes and layouts; None if it is damaged."""
    copy = sound_copy((record or {}).get("attributes"))
    return copy if copy is not None and _are_sound(copy["attributes"]) else None


def _are_sound(attributes: Any) -> bool:
    """Whether the attributes of a database are complete and valid."""
    try:
        Recipe.from_json(attributes["recipe"])
        schemas = {name: LabelSchema.from_json(codes) for name, codes in attributes["label_schemas"].items()}
        lists = [attributes.get(key, []) for key in LISTS]
        return (
            isinstance(attributes["pathology"], str)
            and attributes["codec"] in schema.CODECS
            and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
            and set(attributes[schema.NAMED_AXES["annotation"]]) <= schemas.keys()
            and isinstance(attributes[schema.NAMED_AXES["modality"]], list)
            and 0 <= int(attributes[schema.NUM_STRUCTURES]) <= MOST["structure"]
        )
    except UNREADABLE:
        return False


def _repair_attributes(place: Place, name: str, copy: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A database's attributes, restored if necessary; None if they are lost."""
    key = f"{name}/zarr.json"
    group = place.json(key) or {}
    attributes = group.get("attributes")
    is_group = group.get("zarr_format") == 3 and group.get("node_type") == "group"
    sound: dict[str, Any] | None = attributes if isinstance(attributes, dict) and _are_sound(attributes) else None
    if copy is None:
        return sound
    if is_group and sound is not None and continues(copy["attributes"], sound):
        return sound
    restored: dict[str, Any] = copy["attributes"]
    what = "the attributes of the database, from their second copy"
    place.replace(key, json_bytes({"attributes": restored, "zarr_format": 3, "node_type": "group"}), what)
    return restored


def _find_layouts(
    place: Place, name: str, attributes: Mapping[str, Any], copy: Mapping[str, Any] | None
) -> dict[str, dict[str, Any] | None]:
    """The metadata (zarr.json) of each array, without its shape; None if they are lost."""
    columns = list(attributes.get(schema.PARTICIPANT_COLUMNS, []))
    layouts: dict[str, dict[str, Any] | None] = {}
    default: dict[str, Any] = {}
    for array in [*schema.coordinates_of_database(attributes), *columns, "image", "label"]:
        path = f"{name}/{array}"
        current = layout_of_metadata(place.json(f"{path}/zarr.json") or {})
        copied = None if copy is None else copy["arrays"].get(array)
        if copied == current and _fits(copied):
            layouts[array] = copied
        else:  # either may be damaged, and the files tell
            default = default or _default_layouts(attributes)
            layouts[array] = _choose(place, path, [copied, current, default.get(array)])
    record = layouts["record"]
    if record is not None and None not in layouts.values():
        new_copy = copy_of(attributes if copy is None else copy["attributes"], layouts)
        layouts["record"] = record | {"attributes": {**record["attributes"], COPY: new_copy}}
    return layouts


def _choose(place: Place, path: str, candidates: Sequence[Any]) -> dict[str, Any] | None:
    """The first of these layouts of an array that decodes an existing file; if none does, the first that is valid."""
    valid = [layout for layout in candidates if isinstance(layout, dict) and _fits(layout)]
    file = next(iter(place.keys(f"{path}/c")), "")
    data = place.read(file) if file else None
    key = file.removeprefix(f"{path}/")
    decoding = (layout for layout in valid if data is not None and _fits(layout, key, data))
    return next(decoding, None) or next(iter(valid), None)


def _fits(layout: Any, key: str = "", data: bytes = b"") -> bool:
    """Whether zarr accepts a layout as that of an array with checksums. With a `key`, also whether it decodes that
    file."""
    try:
        index = [int(number) for number in key.split("/")[1:]] if key else [0] * len(layout["dimension_names"])
        chunk = layout["chunk_grid"]["configuration"]["chunk_shape"]
        shape = [(position + 1) * step for position, step in zip(index, chunk, strict=True)]
        files = {key: default_buffer_prototype().buffer.from_bytes(data)} if key else {}
        metadata = ArrayV3Metadata.from_dict({**layout, "shape": shape})
        array = zarr.Array(AsyncArray(metadata, StorePath(MemoryStore(files))))
        corner = tuple(slice(position * step, position * step + 1) for position, step in zip(index, chunk, strict=True))
        return b"crc32c" in json_bytes(layout) and (not key or array[corner] is not None)
    except UNREADABLE:
        return False


def _default_layouts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The layouts of a new database's coordinates, except those that depend on how the database was created."""
    group = zarr.create_group(MemoryStore(), zarr_format=3, attributes=dict(attributes))
    num_structures = int(attributes[schema.NUM_STRUCTURES])
    plan = ArrayPlan(("one",), ("one",), {}, 1, 1, str(attributes["codec"]), max(1, num_structures))
    arrays = DatabaseArrays(group)
    arrays.require(plan)
    every = schema.coordinates_of_database(attributes)
    names = [name for name in every if name not in ("foreground", "foreground_count")]
    return {name: layout_of(arrays[name]) for name in names}


def _minimum_lengths(place: Place, name: str, attributes: Mapping[str, Any]) -> dict[str, int]:
    """The minimum length of each axis."""
    rows = [int(row) for row in place.names(f"{name}/record/c") if row.isdecimal()]
    sizes = {axis: len(attributes[attribute]) for axis, attribute in schema.NAMED_AXES.items()}
    sizes |= {"structure": int(attributes[schema.NUM_STRUCTURES]), "case": max(rows, default=0) + 1}
    return sizes | {"i": 1, "j": 1, "k": 1} | schema.FIXED_AXES


def _repair_array(place: Place, name: str, array: str, layout: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Restore one array's zarr.json. Its shape is kept if it is plausible."""
    key = f"{name}/{array}/zarr.json"
    current = place.json(key) or {}
    axes: Sequence[str] = layout["dimension_names"]
    shape = current.get("shape")
    if not _is_plausible(shape, axes, sizes):
        shape = _shape_from_others(place, name, array, axes, sizes)
    wanted = {**layout, "shape": shape}
    if current != wanted:
        place.replace(key, json_bytes(wanted), f"the metadata of the array {array!r}")


def _is_plausible(shape: Any, axes: Sequence[str], sizes: Mapping[str, int]) -> bool:
    if not isinstance(shape, list) or len(shape) != len(axes):
        return False
    for length, axis in zip(shape, axes, strict=True):
        most = sizes[axis] if axis in schema.FIXED_AXES else MOST.get(axis, 4096)
        if type(length) is not int or not sizes[axis] <= length <= most:
            return False
    return True


def _shape_from_others(place: Place, name: str, array: str, axes: Sequence[str], sizes: Mapping[str, int]) -> list[int]:
    """The shape of an array, from the lengths of the same axes in other arrays, and from existing files."""
    lengths = dict(sizes)
    for other in ["status", "case", "subject", "image", "label"]:
        metadata = place.json(f"{name}/{other}/zarr.json") or {}
        names, shape = metadata.get("dimension_names"), metadata.get("shape")
        if other != array and isinstance(names, list) and _is_plausible(shape, names, sizes):
            lengths |= {axis: max(lengths[axis], n) for axis, n in zip(names, shape or (), strict=True)}
    return [sizes[axis] if axis in schema.FIXED_AXES else lengths[axis] for axis in axes]
