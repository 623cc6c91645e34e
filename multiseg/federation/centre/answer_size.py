"""How large a site's answer may be: it follows from the run's network, and the gate enforces it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from multiseg.files import write_atomically

FILE, REFUSED = "answer_bytes", "too-large.json"
"""In an experiment's folder: the allowed bytes of an answer. In the centre's folder: what the gate has refused."""
ROOM = 64 * 2**20
"""Bytes allowed for any answer: enough for all descriptions and numbers."""
TIMES, WIDTH = 2, 4
"""A network is sent back in numbers of at most 4 bytes (float32, or the integers of masks), with a margin."""


@dataclass(frozen=True)
class TooLarge:
    """A refused answer of a site: when (Unix time), and why."""

    time: float
    text: str


def answer_bytes(num_weights: int) -> int:
    """Bytes allowed for an answer with a network of this size."""
    return ROOM + TIMES * WIDTH * num_weights


def allow_answers(folder: Path, num_weights: int) -> None:
    """Record how large an answer to the run in this folder may be, before sites are asked."""
    text = str(answer_bytes(num_weights)).encode()
    if not (folder / FILE).is_file() or (folder / FILE).read_bytes() != text:
        write_atomically(folder / FILE, text)


def allowed(runs: Path) -> int:
    """Bytes allowed for an answer to any run of a centre."""
    sizes = [ROOM]
    for file in runs.glob(f"*/{FILE}"):
        with suppress(OSError, ValueError):
            sizes.append(int(file.read_text()))
    return max(sizes)


def note_too_large(home: Path, site: str, text: str) -> None:
    """Record that a site's answer was refused, for the run that waits for it."""
    refused = read_too_large(home) | {site: TooLarge(time.time(), text)}
    write_atomically(home / REFUSED, json.dumps({name: asdict(entry) for name, entry in refused.items()}).encode())


def read_too_large(home: Path) -> dict[str, TooLarge]:
    """The last refused answer of each site; empty if there is no readable file."""
    try:
        content = json.loads((home / REFUSED).read_text(encoding="utf-8"))
        return {name: TooLarge(float(entry["time"]), str(entry["text"])) for name, entry in content.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
