"""The second copy of a database's attributes and of its arrays' metadata, in the attributes of `record`.

The small JSON texts of Zarr have no checksum. This copy has one, so that a flipped bit in either is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import zarr

from multiseg.store import schema
from multiseg.store.coordinate_chunks import parsed_metadata, parsed_metadata_in, text_as_read
from multiseg.store.damage import damaged

COPY = "copy"
"""The attribute of `record` that holds the copy."""
FREE_TEXTS = ("licence", "citation", "source")
"""Attributes that an ingest may change. If its process dies, the copy has the old text; that is not damage."""


def copy_of(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The second copy, in the form in which it is stored."""
    copied = {"attributes": dict(attributes), "arrays": dict(arrays)}
    return copied | {"sha256": _digest(copied)}


def sound_copy(attributes: Any) -> dict[str, Any] | None:
    """The copy in the attributes of `record`; None if it is missing or its digest is wrong."""
    copy = attributes.get(COPY) if isinstance(attributes, Mapping) else None
    if not isinstance(copy, dict) or not all(isinstance(copy.get(key), dict) for key in ("attributes", "arrays")):
        return None
    copied = {key: copy[key] for key in ("attributes", "arrays")}
    return copied if copy.get("sha256") == _digest(copied) else None


@lru_cache(maxsize=64)
def _sound_copy_in(text: bytes) -> dict[str, Any] | None:
    """The copy in the zarr.json of `record`. Only for reading."""
    return sound_copy(json.loads(text).get("attributes"))


def _digest(copied: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(copied, sort_keys=True).encode()).hexdigest()


def layout_of(array: zarr.Array) -> dict[str, Any]:
    """An array's metadata (its zarr.json) without its shape, which grows with the cases, and without the copy. Only for
    reading."""
    text = text_as_read(array)
    return _layout(parsed_metadata(array), array.metadata.attributes) if text is None else _layout_in(text)


@lru_cache(maxsize=1024)
def _layout_in(text: bytes) -> dict[str, Any]:
    return _layout(parsed_metadata_in(text), json.loads(text).get("attributes", {}))


def _layout(metadata: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in attributes.items() if key != COPY}
    return layout_of_metadata({**metadata, "attributes": json.loads(json.dumps(own))})


def layout_of_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """As `layout_of`, of a parsed zarr.json."""
    layout = {key: value for key, value in metadata.items() if key not in ("shape", "attributes")}
    attributes = metadata.get("attributes")
    if isinstance(attributes, Mapping):
        layout["attributes"] = {key: value for key, value in attributes.items() if key != COPY}
    return layout


def continues(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the attributes `now` are those `before`, or what a writer may have made of them before it died."""
    if now.keys() - before.keys() - {schema.PARTICIPANT_COLUMNS, schema.REMOVED, schema.REMOVING, schema.TEMPLATE}:
        return False
    return all(_may_follow(key, value, now.get(key)) for key, value in before.items())


def _may_follow(key: str, before: Any, now: Any) -> bool:
    rules: dict[str, Callable[[], bool]] = {
        **dict.fromkeys((*schema.NAMED_AXES.values(), schema.REMOVED), lambda: now[: len(before)] == before),
        schema.PARTICIPANT_COLUMNS: lambda: set(before) <= set(now),
        "label_schemas": lambda: {name: now.get(name) for name in before} == before,
        "recipe": lambda: _has_only_grown(before, now),
        schema.NUM_STRUCTURES: lambda: now >= before,
        "coordinates": lambda: set(before.split()) <= set(now.split()),
        **dict.fromkeys(FREE_TEXTS, lambda: True),
    }
    if key == schema.REMOVING or now == before:
        return True
    return key in rules and type(now) is type(before) and rules[key]()


def _has_only_grown(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a recipe only gained intensity scales, as it does with each new sequence."""
    old, new = (dict(recipe.get("landmarks") or {}) for recipe in (before, now))
    is_same_otherwise = {**before, "landmarks": None} == {**now, "landmarks": None}
    return is_same_otherwise and {name: new.get(name) for name in old} == old


def check_copies(url: str, name: str, attributes: Mapping[str, Any], arrays: Mapping[str, zarr.Array]) -> None:
    """Compare a database's attributes and the metadata of these arrays with the second copy.

    Args:
        arrays: "record" must be one of them.

    Raises:
        StoreError: one of them differs and is damaged; the error names its file.
    """
    if files := differences(name, attributes, arrays):
        raise damaged(url, f"database {name!r}", files[:1])


def differences(name: str, attributes: Mapping[str, Any], arrays: Mapping[str, zarr.Array]) -> list[tuple[str, str]]:
    """The files that differ from the second copy by more than the work of a writer that died, and how."""
    text = text_as_read(arrays["record"])
    copy = sound_copy(arrays["record"].attrs.asdict()) if text is None else _sound_copy_in(text)
    if copy is None:
        return [(f"{name}/record/zarr.json", "the second copy of the database's attributes is damaged or missing")]
    found = []
    # Over a network, a writer that died may have sent only one of the two.
    copied = copy["attributes"]
    if not continues(copied, attributes) and not continues(attributes, copied):
        found.append((f"{name}/zarr.json", difference_of(copied, attributes)))
    for array_name, array in arrays.items():
        layout = copy["arrays"].get(array_name)
        if layout is not None and not _is_as_copied(layout_of(array), layout):
            problem = f"the metadata of {array_name!r} differ from their second copy"
            found.append((f"{name}/{array_name}/zarr.json", problem))
    return found


def difference_of(copied: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    """In which attributes the two copies differ; "" if in none."""
    keys = sorted(key for key in copied.keys() | attributes.keys() if copied.get(key) != attributes.get(key))
    return f"the database's attributes differ from their second copy in {', '.join(keys)}" if keys else ""


def _is_as_copied(layout: Mapping[str, Any], copied: Mapping[str, Any]) -> bool:
    # A writer adds the attributes that xarray needs to the images of older stores.
    return layout == copied or layout == {**copied, "attributes": schema.IMAGE_ATTRIBUTES}
