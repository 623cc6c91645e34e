"""Repairing a damaged store, as far as its redundant data allow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.columns import watch
from multiseg.store.damage import UNREADABLE, damaged
from multiseg.store.guard import GuardedStore
from multiseg.store.hierarchy import NO_STORE, ROOT_KEY, check_head, is_like_a_store, of_another_format, open_group
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.repairs.metadata import repair_metadata
from multiseg.store.repairs.place import Log, Place, json_bytes
from multiseg.store.repairs.points import repair_points
from multiseg.store.repairs.row_repair import repair_rows
from multiseg.store.root import check_place, locked, new_head
from multiseg.types import OnStep, no_progress


def repair(url: str, dry_run: bool = False, on_step: OnStep = no_progress) -> Log:
    """Restore damaged or missing metadata, coordinates, records, states and sampled voxels of a store.

    Each of these is stored twice, or can be computed from others. Files are written one by one, each completely or not
    at all, so that the next repair completes one that was killed. A copy of each damaged file is kept beside the store.

    Args:
        dry_run: only report what would be done.
        on_step: called for each row when its record is read, and when its sampled voxels are checked.

    Raises:
        StoreError: there is no store, or it has another format.
        ResourceError: another process is writing to it, or it cannot be written.
    """
    check_place(url)
    if not is_like_a_store(url):
        raise StoreError(f"there is no store at {url}. Name a store's folder.", code=NO_STORE)
    lock: AbstractContextManager[None] = nullcontext() if dry_run else locked(url)
    with lock:
        place = Place(url, dry_run)
        head = _read_head(place)
        sound = []
        names = _databases(place, head)
        num_steps = {name: 2 * len(place.names(f"{name}/record/c")) for name in names}
        total, num_done = sum(num_steps.values()), 0
        for name in names:
            on_row = _counter(name, num_done, total, on_step)
            if repair_metadata(place, name):
                repair_points(place, repair_rows(place, name, on_row), on_row)
                sound.append(name)
            num_done += num_steps[name]
            on_step(num_done, total, name)
        _repair_root(place, head, names, sound)
        place.finish()
    return place.log


def _counter(name: str, num_done: int, total: int, on_step: OnStep) -> Callable[[], None]:
    """What to call after each step of a database, before which as many steps were done."""
    steps = count(num_done + 1)
    return lambda: on_step(min(next(steps), total), total, name)


def _read_head(place: Place) -> dict[str, Any]:
    """The root's own attribute; {} if it cannot be read.

    Raises:
        StoreError: the store has another format.
    """
    metadata = place.json("zarr.json") or {}
    attributes = metadata.get("attributes")
    head = attributes.get(ROOT_KEY) if isinstance(attributes, dict) else None
    if not isinstance(head, dict):
        return {}
    number = head.get("format")
    if type(number) is int and number > schema.FORMAT:
        raise of_another_format(place.url, number)
    # Format 1 had no records: if there are any, the number itself is damaged.
    if number == schema.CONVERTED or (number == 1 and not _databases(place, {})):
        raise StoreError(
            f"{place.url} has store format {number}, which stores nothing twice. Convert it first: multiseg "
            f"upgrade {place.url}."
        )
    is_group = metadata.get("zarr_format") == 3 and metadata.get("node_type") == "group"
    try:
        check_head(place.url, head)
    except StoreError:
        is_group = False
    return head if is_group and head.get("format") == schema.FORMAT else {}


def _databases(place: Place, head: dict[str, Any]) -> list[str]:
    """The databases that have metadata, and those that the root names."""
    if not place.store.supports_listing:
        raise damaged(place.url, "the root", [("zarr.json", "and its databases cannot be listed")])
    folders = [name for name in place.names("") if not name.startswith(".") and name != "zarr.json"]
    databases = [name for name in folders if {"record", "status"} <= set(place.names(name))]
    named = [str(name) for name in head.get("databases", ())]
    # A name that differs in one letter from an existing database is a damaged name, not a lost database.
    lost = {name for name in named if name not in folders}
    lost -= {name for name in lost for other in databases if _differs_in_one_letter(name, other)}
    others = [name for name in named if name in folders and name not in databases]
    return [*databases, *others, *(name for name in named if name in lost)]


def _differs_in_one_letter(name: str, other: str) -> bool:
    return len(name) == len(other) and sum(a != b for a, b in zip(name, other, strict=True)) == 1


def _repair_root(place: Place, head: dict[str, Any], names: list[str], sound: list[str]) -> None:
    """Restore the root's zarr.json from the databases. Lost databases that it names stay named."""
    grids, named = [], [name for name in names if name in head.get("databases", ()) and name not in sound]
    for name in sound:
        group = open_group(GuardedStore(place.store, place.url), name)
        grids.append(Recipe.from_json(group.attrs.asdict()["recipe"]).spacing_mm)
        try:
            states, _arrays = watch(group)
        except UNREADABLE:
            named += [name] if name in head.get("databases", ()) else []
            continue
        if (states != schema.PENDING).any() or name in head.get("databases", ()):
            named.append(name)
    if len(set(grids)) != 1:
        if head:
            return  # nothing tells which is right
        problem = f"its databases have the voxel sizes {sorted(set(grids))}"
        raise damaged(place.url, "the root", [("zarr.json", problem)])
    if head and set(named) == set(head["databases"]) and list(grids[0]) == list(head["grid_mm"]):
        return
    repaired = new_head(grids[0], named)
    repaired["created_by"] = head.get("created_by", repaired["created_by"])
    text = {"attributes": {ROOT_KEY: repaired}, "zarr_format": 3, "node_type": "group"}
    place.replace("zarr.json", json_bytes(text), f"the root, from its {len(named)} databases")
