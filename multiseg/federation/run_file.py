"""The file of a federated run: what of a training's settings it may not say, since nobody would hear it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiseg.config import read_settings
from multiseg.errors import UsageError
from multiseg.federation.plan import FederationOptions
from multiseg.training.run_folder import flat

UNHEARD = {
    "fit.num_steps": "set schedule.rounds and local.steps",
    "fit.validate_every": "set local.steps: sites validate what they receive, once a round",
    "fit.validation_cases": "set schedule.validation_cases",
    "fit.save_minutes": "leave it out: a site goes on from whole rounds",
    "stream.disk_cache": "leave it out: a site has room for a cache in memory alone",
    "stream.disk_budget": "leave it out: a site has room for a cache in memory alone",
}
"""Settings of a training that no round hears, and what to do instead."""
OF_A_SITE = ("stream.workers", "stream.cache")
"""Settings that a simulation hears, and of which each deployed site says its own."""


def read_run(path: Path, hint: str) -> dict[str, Any]:
    """The tables of a federated run's file.

    Args:
        hint: where such a file comes from, said where there is none.

    Raises:
        UsageError: it is missing, no TOML, or says what is unknown or would go unheard.
    """
    said = read_settings(path, FederationOptions, hint)
    lost = sorted(UNHEARD.keys() & flat(said).keys())
    if lost:
        listed = "; ".join(f"{name} ({UNHEARD[name]})" for name in lost)
        raise UsageError(f"{path} says what no round of a federation hears: {listed}.")
    return said


def heard(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that no round hears."""
    return _without(settings, "")


def left_to_sites(said: Mapping[str, Any]) -> list[str]:
    """What a person should know of settings in which a deployed site does not hear the run."""
    names = [name for name in OF_A_SITE if name in flat(said)]
    if not names:
        return []
    return [f"Not heard, since each site says its own in its site.toml: {', '.join(names)}."]


def _without(tree: Mapping[str, Any], above: str) -> dict[str, Any]:
    return {
        key: _without(value, f"{above}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if f"{above}{key}" not in UNHEARD
    }
