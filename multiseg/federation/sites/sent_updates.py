"""Records for good which masks a site has used in an experiment, and how many updates with noise it has sent.

Answers are deleted in later rounds, and a task may then be answered again. The same masks over another update would
reveal both, and every further update with noise reveals more, so these small records are never deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multiseg.errors import CheckpointError
from multiseg.federation.pairwise_masks import digest_of
from multiseg.files import write_atomically

CIRCLES, RELEASES = "circles", "releases"


def check_circle(folder: Path, number: int, circle: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if other tensors were sent under the circle's masks in this round."""
    file = _circle(folder, number, circle)
    if file.is_file() and file.read_text() != digest_of(tensors):
        raise CheckpointError(
            "this site has already sent another answer under the same masks, and a second one would reveal the first: "
            "start the run under another experiment name."
        )


def note_circle(folder: Path, number: int, circle: str, tensors: Mapping[str, Tensor]) -> None:
    """Record what is sent under a circle, after it was stored and before it leaves; see `check_circle`."""
    check_circle(folder, number, circle, tensors)
    write_atomically(_circle(folder, number, circle), digest_of(tensors).encode())


def count_release(folder: Path, number: int, digest: str) -> int:
    """Record an update with noise, before it is stored; the number of different ones so far."""
    write_atomically(folder / RELEASES / f"{number:06d}-{digest}", b"")
    return sum(1 for file in (folder / RELEASES).iterdir() if not file.name.startswith("."))


def _circle(folder: Path, number: int, circle: str) -> Path:
    return folder / CIRCLES / f"{number:06d}-{circle}"
