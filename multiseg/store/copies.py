"""The second copy of a database's attributes and of its arrays' metadata, in the attributes of `record`.

The small JSON texts of Zarr have no checksum. This copy has one, so that a flipped bit in either is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype

from multiseg.store import schema
from multiseg.store.damage import damaged

COPY = "copy"
"""The attribute of `record`."""
FREE_TEXTS = ("licence", "citation", "source")
"""Attributes that an ingest may change. Where its process dies the copy has the old text, which is no damage."""


def copy_of(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The copy as it is stored."""
    told = {"attributes": dict(attributes), "arrays": dict(arrays)}
    return told | {"sha256": _digest(told)}


def sound_copy(held: Any) -> dict[str, Any] | None:
    """The copy that the attributes of `record` hold; None where there is none, or its digest is wrong."""
    copy = held.get(COPY) if isinstance(held, Mapping) else None
    if not isinstance(copy, dict) or not all(isinstance(copy.get(key), dict) for key in ("attributes", "arrays")):
        return None
    told = {key: copy[key] for key in ("attributes", "arrays")}
    return told if copy.get("sha256") == _digest(told) else None


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def layout_of(array: zarr.Array) -> dict[str, Any]:
    """What an array's zarr.json says, but its shape, which grows with the cases, and the copy itself."""
    return bare(json.loads(array.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()))


def bare(held: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what a zarr.json holds."""
    told = {key: value for key, value in held.items() if key not in ("shape", "attributes")}
    attributes = held.get("attributes")
    if isinstance(attributes, Mapping):
        told["attributes"] = {key: value for key, value in attributes.items() if key != COPY}
    return told


def continues(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether attributes are the copied ones, or what a writer made of them before it died."""
    if now.keys() - before.keys() - {schema.PARTICIPANT_COLUMNS, schema.REMOVED, schema.REMOVING}:
        return False
    return all(_may_follow(key, value, now.get(key)) for key, value in before.items())


def _may_follow(key: str, before: Any, now: Any) -> bool:
    rules: dict[str, Callable[[], bool]] = {
        **dict.fromkeys((*schema.NAMED_AXES.values(), schema.REMOVED), lambda: now[: len(before)] == before),
        schema.PARTICIPANT_COLUMNS: lambda: set(before) <= set(now),
        "label_schemas": lambda: {name: now.get(name) for name in before} == before,
        "recipe": lambda: _grown(before, now),
        schema.NUM_STRUCTURES: lambda: now >= before,
        "coordinates": lambda: set(before.split()) <= set(now.split()),
        **dict.fromkeys(FREE_TEXTS, lambda: True),
    }
    if key == schema.REMOVING or now == before:
        return True
    return key in rules and type(now) is type(before) and rules[key]()


def _grown(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """A recipe grows a scale with each new sequence."""
    old, new = (dict(one.get("landmarks") or {}) for one in (before, now))
    rest = [{key: value for key, value in one.items() if key != "landmarks"} for one in (before, now)]
    return rest[0] == rest[1] and {name: new.get(name) for name in old} == old


def check_copies(url: str, name: str, attributes: Mapping[str, Any], arrays: Mapping[str, zarr.Array]) -> None:
    """Whether a database's attributes and the metadata of these arrays are those of the second copy.

    Args:
        arrays: "record" among them.

    Raises:
        StoreError: one of them is damaged; its file is named.
    """
    for file, said in differences(name, attributes, arrays):
        raise damaged(url, f"database {name!r}", [(file, said)])


def differences(name: str, attributes: Mapping[str, Any], arrays: Mapping[str, zarr.Array]) -> list[tuple[str, str]]:
    """The files that differ from the second copy by more than a writer that died, and in what."""
    copy = sound_copy(arrays["record"].attrs.asdict())
    if copy is None:
        return [(f"{name}/record/zarr.json", "the second copy of the database's attributes is damaged or not there")]
    found = []
    # Over a network a writer that died may have sent either of them, and not the other.
    if not continues(copy["attributes"], attributes) and not continues(attributes, copy["attributes"]):
        keys = sorted(
            key for key in {*attributes, *copy["attributes"]} if attributes.get(key) != copy["attributes"].get(key)
        )
        found.append(
            (f"{name}/zarr.json", f"the database's attributes differ from their second copy in {', '.join(keys)}")
        )
    for array, held in arrays.items():
        wanted = copy["arrays"].get(array)
        if wanted is not None and not _is_as_copied(layout_of(held), wanted):
            found.append((f"{name}/{array}/zarr.json", f"the metadata of {array!r} differ from their second copy"))
    return found


def _is_as_copied(held: Mapping[str, Any], copied: Mapping[str, Any]) -> bool:
    # A writer gives older images the attributes that xarray needs.
    return held == copied or held == {**copied, "attributes": schema.IMAGE_ATTRIBUTES}
