"""The zarr.json of a database and of its arrays, made again from their second copies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.arrays import FIXED_AXES, DatabaseArrays
from multiseg.store.checks.layout import MOST
from multiseg.store.copies import COPY, bare, continues, copy_of, layout_of, sound_copy
from multiseg.store.damage import UNREADABLE
from multiseg.store.ingest.encoding import ArrayPlan
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.repairs.place import Place
from multiseg.store.repairs.repair_report import Log

LISTS = (*schema.NAMED_AXES.values(), schema.PARTICIPANT_COLUMNS)


def repair_metadata(place: Place, name: str, log: Log) -> bool:
    """Make the zarr.json files of a database readable again; whether that could be done."""
    copy = _copy(place.json(f"{name}/record/zarr.json"))
    attributes = _attributes(place, name, copy, log)
    if attributes is None:
        log.lost(name, "", f"{name}/zarr.json", "its attributes and their second copy are both damaged")
        return False
    layouts = _layouts(place, name, attributes, copy)
    missing = sorted(array for array, layout in layouts.items() if layout is None)
    if missing:
        log.lost(name, "", f"{name}/{missing[0]}/zarr.json", "nothing says any more how its files are packed")
        return False
    sizes = _sizes(place, name, attributes)
    for array, layout in layouts.items():
        assert layout is not None
        _array(place, name, array, layout, sizes, log)
    return True


def _copy(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The second copy of attributes and layouts, where it is sound."""
    copy = sound_copy((record or {}).get("attributes"))
    return copy if copy is not None and _are_sound(copy["attributes"]) else None


def _are_sound(held: Any) -> bool:
    """Whether attributes say all that a database's have to."""
    try:
        Recipe.from_json(held["recipe"])
        schemas = {name: LabelSchema.from_json(codes) for name, codes in held["label_schemas"].items()}
        lists = [held.get(key, []) for key in LISTS]
        return (
            isinstance(held["pathology"], str)
            and held["codec"] in schema.CODECS
            and all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists)
            and set(held[schema.NAMED_AXES["annotation"]]) <= schemas.keys()
            and isinstance(held[schema.NAMED_AXES["modality"]], list)
            and 0 <= int(held[schema.NUM_STRUCTURES]) <= MOST["structure"]
        )
    except UNREADABLE:
        return False


def _attributes(place: Place, name: str, copy: Mapping[str, Any] | None, log: Log) -> dict[str, Any] | None:
    """A database's attributes as they are from now on; None where they are lost."""
    key = f"{name}/zarr.json"
    group = place.json(key) or {}
    held = group.get("attributes")
    is_group = group.get("zarr_format") == 3 and group.get("node_type") == "group"
    if (
        is_group
        and isinstance(held, dict)
        and _are_sound(held)
        and (copy is None or continues(copy["attributes"], held))
    ):
        return held
    if copy is None:
        return held if isinstance(held, dict) and _are_sound(held) else None
    told: dict[str, Any] = copy["attributes"]
    place.replace(key, _text({"attributes": told, "zarr_format": 3, "node_type": "group"}))
    log.repaired(key, "the attributes of the database, from their second copy")
    return told


def _layouts(
    place: Place, name: str, attributes: Mapping[str, Any], copy: Mapping[str, Any] | None
) -> dict[str, dict[str, Any] | None]:
    """What the zarr.json of each array has to say, but its shape; None where nobody knows."""
    columns = list(attributes.get(schema.PARTICIPANT_COLUMNS, []))
    found: dict[str, dict[str, Any] | None] = {}
    default = _default_layouts(attributes)
    for array in [*schema.COORDINATES, *columns, "image", "label"]:
        held = place.json(f"{name}/{array}/zarr.json") or {}
        own = bare(held)
        # The second copy may be the damaged one: what decodes a file that is there is right.
        options = [None if copy is None else copy["arrays"].get(array), own, default.get(array)]
        path = f"{name}/{array}"
        readable = [one for one in options if isinstance(one, dict) and _fits(place, path, one, "")]
        first = next(iter(place.keys(f"{path}/c")), "").removeprefix(f"{path}/")
        right = [one for one in readable if first and _fits(place, path, one, first)]
        found[array] = next(iter([*right, *readable]), None)
    record = found["record"]
    if record is not None and None not in found.values():
        told = copy_of(attributes if copy is None else copy["attributes"], found)
        found["record"] = record | {"attributes": {**record["attributes"], COPY: told}}
    return found


def _fits(place: Place, path: str, layout: Mapping[str, Any], key: str) -> bool:
    """Whether zarr reads this metadata, and it is an array's with checksums; and where a `key` is given, whether this
    file of the array decodes."""
    store = MemoryStore()
    try:
        index = [int(n) for n in key.split("/")[1:]] if key else [0] * len(layout["dimension_names"])
        grid = layout["chunk_grid"]["configuration"]["chunk_shape"]
        text = _text({**layout, "shape": [(at + 1) * step for at, step in zip(index, grid, strict=True)]})
        for name, data in {"zarr.json": text, key: place.read(f"{path}/{key}") or b""}.items():
            sync(store.set(name, default_buffer_prototype().buffer.from_bytes(data)))
        array = zarr.open(store, mode="r", zarr_format=3)
        if not isinstance(array, zarr.Array) or b"crc32c" not in text:
            return False
        corner = tuple(slice(at * step, at * step + 1) for at, step in zip(index, grid, strict=True))
        return not key or array[corner] is not None
    except UNREADABLE:
        return False


def _default_layouts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The layouts that the coordinates of a new database have: only these do not depend on what it was made with."""
    group = zarr.create_group(MemoryStore(), zarr_format=3, attributes=dict(attributes))
    num = int(attributes[schema.NUM_STRUCTURES])
    plan = ArrayPlan(("one",), ("one",), {}, 1, 1, str(attributes["codec"]), max(1, num))
    arrays = DatabaseArrays(group)
    arrays.require(plan)
    known = [name for name in schema.COORDINATES if name not in ("foreground", "foreground_count")]
    return {name: layout_of(arrays[name]) for name in known}


def _sizes(place: Place, name: str, attributes: Mapping[str, Any]) -> dict[str, int]:
    """How long each axis has to be at least."""
    rows = [int(row) for row in place.names(f"{name}/record/c") if row.isdecimal()]
    sizes = {axis: len(attributes[attribute]) for axis, attribute in schema.NAMED_AXES.items()}
    sizes |= {"structure": int(attributes[schema.NUM_STRUCTURES]), "case": max(rows, default=0) + 1}
    return sizes | {"i": 1, "j": 1, "k": 1} | FIXED_AXES


def _array(place: Place, name: str, array: str, layout: Mapping[str, Any], sizes: Mapping[str, int], log: Log) -> None:
    """One array's zarr.json, with its own shape where that can be right."""
    key = f"{name}/{array}/zarr.json"
    held = place.json(key) or {}
    axes: Sequence[str] = layout["dimension_names"]
    shape = held.get("shape")
    if not _can_be(shape, axes, sizes):
        shape = _shape_beside(place, name, array, axes, sizes)
    wanted = {**layout, "shape": shape}
    if held != wanted:
        place.replace(key, _text(wanted))
        log.repaired(key, f"the metadata of the array {array!r}")


def _can_be(shape: Any, axes: Sequence[str], sizes: Mapping[str, int]) -> bool:
    if not isinstance(shape, list) or len(shape) != len(axes):
        return False
    for n, axis in zip(shape, axes, strict=True):
        most = sizes[axis] if axis in FIXED_AXES else MOST.get(axis, 4096)
        if type(n) is not int or not sizes[axis] <= n <= most:
            return False
    return True


def _shape_beside(place: Place, name: str, array: str, axes: Sequence[str], sizes: Mapping[str, int]) -> list[int]:
    """A shape from what other arrays of the database say of the same axes, and from the files that are there."""
    found = dict(sizes)
    for other in ["status", "case", "subject", "image", "label"]:
        held = place.json(f"{name}/{other}/zarr.json") or {}
        names, shape = held.get("dimension_names"), held.get("shape")
        if other != array and isinstance(names, list) and _can_be(shape, names, sizes):
            found |= {axis: max(found[axis], n) for axis, n in zip(names, shape or (), strict=True)}
    return [sizes[axis] if axis in FIXED_AXES else found[axis] for axis in axes]


def _text(held: Mapping[str, Any]) -> bytes:
    return json.dumps(held, indent=2).encode()
