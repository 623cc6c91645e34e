"""Which runs have ended: sites ask, and then stop working for them."""

from __future__ import annotations

import json
from pathlib import Path

from multiseg.files import write_atomically

FILE = "ended.json"


def write_ended(folder: Path, endings: dict[str, str]) -> None:
    """Write how each run ended, by its number, if that has changed."""
    data = json.dumps(endings, sort_keys=True).encode()
    if not (folder / FILE).is_file() or (folder / FILE).read_bytes() != data:
        write_atomically(folder / FILE, data)


def how_ended(folder: Path, run: str) -> str:
    """How a run ended; "" if it is running or unknown."""
    try:
        return str(json.loads((folder / FILE).read_text(encoding="utf-8")).get(run, ""))
    except (OSError, ValueError, AttributeError):
        return ""
