"""Which runs have ended, for sites that ask: they then stop what they do for one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from multiseg.federation.hosting.control import Run
from multiseg.files import write_atomically

FILE = "ended.json"


def ended(runs: Sequence[Run]) -> dict[str, str]:
    """How each run ended, by its number. One that was lost has not while its experiment goes on, or will be taken up.

    Args:
        runs: the newest first.
    """
    newest: dict[str, Run] = {}
    for run in runs:
        newest.setdefault(run.experiment, run)
    over = {name for name, run in newest.items() if run.status == "finished" and not run.lost}
    return {
        str(run.run_id): run.outcome or "finished"
        for run in runs
        if run.status == "finished" and (not run.lost or run.experiment in over)
    }


def write_ended(folder: Path, found: dict[str, str]) -> None:
    """Write it down where it has changed."""
    data = json.dumps(found, sort_keys=True).encode()
    if not (folder / FILE).is_file() or (folder / FILE).read_bytes() != data:
        write_atomically(folder / FILE, data)


def how_ended(folder: Path, run: str) -> str:
    """How a run ended; "" where it goes on or is not known."""
    try:
        return str(json.loads((folder / FILE).read_text(encoding="utf-8")).get(run, ""))
    except (OSError, ValueError, AttributeError):
        return ""
