"""Which runs have ended, for sites that ask: they then stop what they do for one."""

from __future__ import annotations

import json
from pathlib import Path

from multiseg.files import write_atomically

FILE = "ended.json"


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
