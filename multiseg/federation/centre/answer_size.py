"""How large an answer of a site may be: it follows from the run's own network, and the gate holds every site to it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from multiseg.files import write_atomically

FILE, REFUSED = "answer_bytes", "too-large.json"
"""In an experiment's folder: bytes that one of its answers may have. In the centre's: what the gate has refused."""
ROOM = 64 * 2**20
"""Bytes that any answer may have: descriptions and numbers of all kinds, with room to spare."""
TIMES, WIDTH = 2, 4
"""A network is sent back in numbers of 4 bytes at most (float32, or the whole numbers of masks), with a margin."""


@dataclass(frozen=True)
class TooLarge:
    """That a site's answer was refused: when (Unix time), and why."""

    time: float
    text: str


def answer_bytes(num_weights: int) -> int:
    """Bytes that an answer to a round of a network of so many numbers may have."""
    return ROOM + TIMES * WIDTH * num_weights


def allow_answers(folder: Path, num_weights: int) -> None:
    """Write down how large an answer to the run in this folder may be, before it is asked for one."""
    text = str(answer_bytes(num_weights)).encode()
    if not (folder / FILE).is_file() or (folder / FILE).read_bytes() != text:
        write_atomically(folder / FILE, text)


def allowed(runs: Path) -> int:
    """Bytes that an answer to any run of a centre may have."""
    found = [ROOM]
    for file in runs.glob(f"*/{FILE}"):
        try:
            found.append(int(file.read_text()))
        except (OSError, ValueError):
            continue
    return max(found)


def note_too_large(home: Path, site: str, text: str) -> None:
    """Write down that a site's answer was refused, for the run that waits for it."""
    found = {name: asdict(one) for name, one in read_too_large(home).items()}
    found[site] = asdict(TooLarge(time.time(), text))
    write_atomically(home / REFUSED, json.dumps(found).encode())


def read_too_large(home: Path) -> dict[str, TooLarge]:
    """What was refused last of each site; none where there is no file that can be read."""
    try:
        found = json.loads((home / REFUSED).read_text(encoding="utf-8"))
        return {name: TooLarge(float(one["time"]), str(one["text"])) for name, one in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
