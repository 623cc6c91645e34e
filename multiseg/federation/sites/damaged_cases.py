"""Cases of a site whose files are damaged: left out, named at the site alone, counted in its answer.

A training round draws as if they were not in the store, so that the same damage gives the same round however often it
is started. Each is looked at again before a round, and is back in it once it was fixed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from multiseg.errors import DataError, FederationError
from multiseg.files import write_atomically
from multiseg.shown import line
from multiseg.store.reader import Case, Store, open_store

FILE = "damaged.json"
"""At the site: the names of the damaged cases of an experiment, and what is wrong with each."""
LOGGER = logging.getLogger("multiseg.federation")


def unsound(store: Store, cases: Sequence[Case]) -> dict[str, str]:
    """Of these cases those that cannot be read, as "DATABASE/CASE", and why. All that is stored of each is read."""
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
    """The cases that an experiment has found damaged here before."""
    return frozenset(_read(folder))


def write_damage(folder: Path, found: Mapping[str, str], cases: Sequence[Case]) -> None:
    """Note at the site which of these cases are damaged, and log those that are news."""
    before = _read(folder)
    looked_at = {f"{case.database}/{case.name}" for case in cases}
    for name in sorted(found.keys() - before.keys()):
        LOGGER.warning("%s is damaged and left out: %s", line(name, 200), line(found[name]))
    now = {name: why for name, why in before.items() if name not in looked_at} | dict(found)
    if now.keys() != before.keys():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, json.dumps(now, indent=1, sort_keys=True).encode())


def sound_store(url: str, names: Collection[str]) -> Store:
    """The store as it would be without these cases, named "DATABASE/CASE"."""
    store = open_store(url)
    for database in store.databases.values():
        database.cases = tuple(case for case in database.cases if f"{case.database}/{case.name}" not in names)
    return store


def check_share(num_damaged: int, num_cases: int, most: float) -> None:
    """Whether so few of a site's cases are damaged that it takes part without them.

    Raises:
        FederationError: more than the share that the site allows.
    """
    if num_damaged > most * num_cases:
        raise FederationError(
            "more of this site's cases are damaged than it lets a run be without (max_damaged in its settings). Its "
            "log names them: multiseg verify finds all; multiseg repair makes again what is held twice, and ingest "
            "with --redo brings back the rest."
        )


def _read(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # it only spares the time of finding them again
        return {}
