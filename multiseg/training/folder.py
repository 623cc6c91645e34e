"""The settings of a training, and the folder that belongs to one run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from multiseg.errors import UsageError
from multiseg.files import write_atomically
from multiseg.loaders.batches import StreamOptions
from multiseg.models.builders import PUBLISHED_WIDTHS
from multiseg.models.saved import BEST, LAST
from multiseg.training.checkpoint import RESUME
from multiseg.training.fit import FitOptions

RUN_FILE, LOG, TENSORBOARD = "run.toml", "log.jsonl", "tensorboard"
FREE = frozenset({"device", "stream.workers", "fit.save_minutes"})
"""Settings that may differ when a run goes on: they do not change what is learnt."""


@dataclass(frozen=True)
class ModelOptions:
    """Which network: its name and its numbers."""

    builder: str = "multi_unet"
    widths: tuple[int, ...] = PUBLISHED_WIDTHS
    dropout: float = 0.2


@dataclass(frozen=True)
class TrainOptions:
    """One training, whole.

    Attributes:
        databases: names in the store; empty takes all.
        labels: what the model tells apart; "lesion" stands for every lesion, "tissue:NAME" for a tissue.
        seed: of the weights, the dropout and every draw.
    """

    store: str
    databases: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("lesion",)
    device: str = "auto"
    seed: int = 0
    model: ModelOptions = ModelOptions()
    stream: StreamOptions = StreamOptions()
    fit: FitOptions = FitOptions()


def to_toml(options: TrainOptions) -> str:
    """A run file that says every setting."""
    return tomli_w.dumps(asdict(options))


def claim_folder(out: Path, options: TrainOptions, overwrite: bool) -> None:
    """Make the folder this run's: an empty one, one with the same settings, or any with `overwrite`.

    Raises:
        UsageError: it holds a run with other settings.
    """
    if overwrite:
        _forget(out)
    text = to_toml(options)
    if (out / RUN_FILE).is_file():
        _check_same_run(tomllib.loads((out / RUN_FILE).read_text(encoding="utf-8")), tomllib.loads(text), out)
    write_atomically(out / RUN_FILE, text.encode())


def _forget(out: Path) -> None:
    """Remove what an earlier training left in a folder, and nothing else."""
    for name in (BEST, LAST, RESUME, LOG, RUN_FILE):
        (out / name).unlink(missing_ok=True)
    for file in (out / TENSORBOARD).glob("events.*"):
        file.unlink()


def _check_same_run(held: Mapping[str, Any], asked: Mapping[str, Any], out: Path) -> None:
    """Whether a folder's run is the one that is asked for; the device and the workers may differ.

    Raises:
        UsageError: another setting differs; the message names it.
    """
    a, b = _flat(held), _flat(asked)
    differing = sorted(key for key in (a.keys() | b.keys()) - FREE if a.get(key) != b.get(key))
    if differing:
        listed = "; ".join(f"{key} was {a.get(key)!r}, now {b.get(key)!r}" for key in differing[:5])
        raise UsageError(
            f"{out} holds a run with other settings: {listed}. Go on with its own, "
            "choose another --out, or pass --overwrite to start it anew."
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
