"""Leaves out cases with damaged files: named only at the site, counted in its answer.

A training round draws as if they were not in the store, so that the same damage gives the same round whenever it is
repeated. Each is checked again before a round, and used again once it is fixed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from multiseg.errors import DataError, FederationError
from multiseg.federation.sites.site import Site, store_of
from multiseg.files import write_atomically
from multiseg.shown import line
from multiseg.store.reader import Case, Store

FILE = "damaged.json"
"""The damaged cases of an experiment, and what is wrong with each."""
LOGGER = logging.getLogger("multiseg.federation")


def unsound(store: Store, cases: Sequence[Case]) -> dict[str, str]:
    """The cases that cannot be read completely, as "DATABASE/CASE", and why."""
    found = {}
    for case in cases:
        try:
            store[case.database].whole(case)
            store[case.database].foreground(case)
        except DataError as error:
            found[f"{case.database}/{case.name}"] = str(error)
        except (ValueError, RuntimeError) as error:  # of the codec, for coordinates
            found[f"{case.database}/{case.name}"] = f"its coordinates are damaged: {error}"
    return found


def known_damage(folder: Path) -> frozenset[str]:
    """The cases that the experiment has found damaged before."""
    return frozenset(_read(folder))


def write_damage(folder: Path, found: Mapping[str, str], cases: Sequence[Case]) -> None:
    """Record which of these cases are damaged, and log the new ones."""
    before = _read(folder)
    checked = {f"{case.database}/{case.name}" for case in cases}
    for name in sorted(found.keys() - before.keys()):
        LOGGER.warning("%s is damaged and left out: %s", line(name, 200), line(found[name]))
    now = {name: why for name, why in before.items() if name not in checked} | dict(found)
    if now.keys() != before.keys():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, json.dumps(now, indent=1, sort_keys=True).encode())


def sound_store(site: Site, opened: Store, names: Collection[str]) -> Store:
    """The site's store, opened before, without these cases, named "DATABASE/CASE"."""
    if not names:
        return opened
    store = store_of(site)  # another one, since errors are cleaned of the names of all cases
    for database in store.databases.values():
        database.cases = tuple(case for case in database.cases if f"{case.database}/{case.name}" not in names)
    return store


def check_share(num_damaged: int, num_cases: int, max_damaged: float) -> None:
    """Raises FederationError if a larger share of the cases is damaged than the site allows."""
    if num_damaged > max_damaged * num_cases:
        raise FederationError(
            "more of this site's cases are damaged than it allows (max_damaged in its settings). Its log lists them: "
            "multiseg verify finds all of them, multiseg repair restores what is stored twice, and ingest with --redo "
            "restores the rest."
        )


def _read(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # it only saves the time to find them again
        return {}
