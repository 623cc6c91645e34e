"""Reads the run file of a federation, and refuses training settings that a federation ignores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiseg.config import read_settings
from multiseg.errors import UsageError
from multiseg.federation.plan import FederationOptions
from multiseg.training.run_folder import flat

IGNORED = {
    "fit.num_steps": "set schedule.rounds and local.steps",
    "fit.validate_every": "set local.steps: sites validate what they receive, once a round",
    "fit.validation_cases": "set schedule.validation_cases",
    "fit.save_minutes": "leave it out: a site resumes from whole rounds",
    "stream.disk_cache": "leave it out: a site caches only in memory",
    "stream.disk_budget": "leave it out: a site caches only in memory",
}
"""Training settings that a federation ignores, and what to do instead."""
OF_A_SITE = ("stream.workers", "stream.cache")
"""Settings for simulations: each deployed site sets its own."""


def read_run(path: Path, hint: str) -> dict[str, Any]:
    """The settings in a federated run's file, as tables.

    Args:
        hint: how to get such a file, for the error if it is missing.

    Raises:
        UsageError: it is missing, not valid TOML, or sets something that is unknown or ignored.
    """
    settings = read_settings(path, FederationOptions, hint)
    ignored = sorted(IGNORED.keys() & flat(settings).keys())
    if ignored:
        listed = "; ".join(f"{name} ({IGNORED[name]})" for name in ignored)
        raise UsageError(f"{path} has settings that a federation ignores: {listed}.")
    return settings


def drop_ignored(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings without those that a federation ignores."""
    return {
        key: drop_ignored(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if f"{prefix}{key}" not in IGNORED
    }


def left_to_sites(settings: Mapping[str, Any]) -> list[str]:
    """A note on the settings that deployed sites ignore, if there are any."""
    names = [name for name in OF_A_SITE if name in flat(settings)]
    if not names:
        return []
    return [f"Ignored, since each site sets its own in site.toml: {', '.join(names)}."]
