"""The settings of a training, and the folder that belongs to one run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from multiseg.errors import UsageError
from multiseg.files import check_folder, lock_folder, write_atomically
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.modalities import as_names
from multiseg.models.builders import multi_unet
from multiseg.models.saved import BEST, LAST
from multiseg.own import is_own
from multiseg.training.checkpoint import RESUME
from multiseg.training.fit import FitOptions
from multiseg.training.optimisers import OptimiserOptions
from multiseg.training.run_data import DATA
from multiseg.training.start import StartOptions
from multiseg.training.trackers import TrackOptions

RUN_FILE, LOG, TENSORBOARD, LOCK = "run.toml", "log.jsonl", "tensorboard", ".lock"
FILES = (BEST, LAST, RESUME, LOG, RUN_FILE, DATA)
READING = ("workers", "start", "ahead", "cache", "checksums", "on_death", "disk_cache", "disk_budget")
COMPUTING = ("save_minutes", "channels_last", "compile", "deterministic")
FREE = frozenset(
    {
        "device",
        "start.model",
        *(f"track.{one.name}" for one in fields(TrackOptions)),
        "fit.num_steps",
        *(f"fit.{name}" for name in COMPUTING),
        *(f"stream.{name}" for name in READING),
    }
)
"""Settings that may differ when a run goes on: they do not change what is learnt. The model that is started from may
lie elsewhere by now; that it is the same one is seen from its bytes. The number of steps changes the schedule from then
on, which is said; it cannot be less than what is done."""


@dataclass(frozen=True)
class ModelOptions:
    """Which network: its name and its numbers, of the published one by default.

    Attributes:
        builder, norm: see `multiseg.models.builders.NETWORKS` and `multiseg.models.blocks.NORMS`; your own network as
            module:name.
        numbers: by name, what your own network is called with; widths, dropout and norm are multiseg's own networks'.
    """

    builder: str = "multi_unet"
    widths: tuple[int, ...] = multi_unet.widths
    dropout: float = multi_unet.dropout
    norm: str = multi_unet.norm
    numbers: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TrainOptions:
    """One training, whole.

    Attributes:
        databases: names in the store; empty takes all.
        labels: what the model tells apart; "lesion" stands for every lesion, "tissue:NAME" for a tissue.
        rest: what voxels of lesion structures are that `labels` leave out: "background" or "ignore"; "" refuses them.
        start: the model that is fine-tuned, if any; `labels` and `model` are then its own.
        seed: of the weights and the dropout, and of draws and augmentation unless these have their own.
    """

    store: str | Path
    databases: str | tuple[str, ...] = ()
    labels: str | tuple[str, ...] = ("lesion",)
    rest: str = ""
    device: str = "auto"
    seed: int = 0
    start: StartOptions = StartOptions()
    model: ModelOptions = ModelOptions()
    stream: StreamOptions = StreamOptions()
    augment: AugmentOptions = AugmentOptions()
    fit: FitOptions = FitOptions()
    optimiser: OptimiserOptions = OptimiserOptions()
    track: TrackOptions = TrackOptions()

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", str(self.store))
        for name in ("databases", "labels"):
            object.__setattr__(self, name, as_names(getattr(self, name)))


def numbers_of(model: ModelOptions) -> dict[str, Any]:
    """What the network is made with by name, as its model file will hold it.

    Raises:
        UsageError: a number is set that the network does not take, or one that a model file cannot hold.
    """
    if not is_own(model.builder):
        if model.numbers:
            raise UsageError(
                f"[model.numbers] sets {', '.join(model.numbers)}, but it is for networks of your own: {model.builder} "
                "takes widths, dropout and norm, set in [model] itself."
            )
        return {"widths": list(model.widths), "dropout": model.dropout, "norm": model.norm}
    plain = ModelOptions(model.builder)
    unused = [name for name in ("widths", "dropout", "norm") if getattr(model, name) != getattr(plain, name)]
    if unused:
        raise UsageError(
            f"[model] sets {', '.join(unused)}, but {model.builder} does not take them: put the numbers of your own "
            "network in [model.numbers]."
        )
    try:
        numbers: dict[str, Any] = json.loads(json.dumps(dict(model.numbers), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"model.numbers cannot be kept in a model file: {error}. Give plain numbers and texts."
        ) from None
    return numbers


def seeded(seed: int, stream: StreamOptions, augment: AugmentOptions) -> tuple[StreamOptions, AugmentOptions]:
    """Draws and augmentation with the one seed of a training, where they have none of their own."""
    draw = replace(stream.draw, seed=seed if stream.draw.seed is None else stream.draw.seed)
    own = seed if augment.seed is None else augment.seed
    return replace(stream, draw=draw), replace(augment, seed=own)


def with_all_seeds(options: TrainOptions) -> TrainOptions:
    """The same options, in which draws and augmentation have a seed."""
    stream, augment = seeded(options.seed, options.stream, options.augment)
    return replace(options, stream=stream, augment=augment)


def to_toml(options: TrainOptions) -> str:
    """A run file that says every setting."""
    return tomli_w.dumps(asdict(with_all_seeds(options)))


@contextmanager
def claimed_folder(out: Path, options: TrainOptions, overwrite: bool) -> Iterator[None]:
    """Hold the folder for this run: one without saved steps, one with the same settings, or any with `overwrite`.

    The settings are not written yet: `write_settings` does, once it is known that the run can begin.

    Raises:
        ResourceError: another process trains into it.
        UsageError: it holds a run with other settings, a model of no run, or it is something else: a store, a folder of
            scans.
    """
    check_folder(out, own=(RUN_FILE, LOCK, BEST, LAST))
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out / LOCK, "another training writes to it. Wait for that, or choose another --out."):
        _take_over(out, options, overwrite)
        yield


def _take_over(out: Path, options: TrainOptions, overwrite: bool) -> None:
    if overwrite:
        _forget(out)
    for name in FILES:
        for half_written in out.glob(f".{name}.*.tmp"):  # by a process that was killed
            half_written.unlink()
    held, asked = held_settings(out), tomllib.loads(to_toml(options))
    if held:
        _check_same_run(held, asked, out)
        return
    there = [name for name in (BEST, LAST) if (out / name).exists()]
    if there and not (out / RESUME).is_file():  # of a save that was cut short, or of something else
        if not (out / RUN_FILE).is_file():
            raise UsageError(f"{out} holds a model ({there[0]}) of no training. Choose another --out, or --overwrite.")
        _check_same_run(tomllib.loads((out / RUN_FILE).read_text(encoding="utf-8")), asked, out)


def write_settings(out: Path, options: TrainOptions) -> None:
    """Say in the folder by which settings its run goes on."""
    write_atomically(out / RUN_FILE, to_toml(options).encode())


def held_settings(out: Path) -> dict[str, Any]:
    """The settings of the run in a folder, nested; none where nothing is saved, since then they bind nobody."""
    if not ((out / RESUME).is_file() and (out / RUN_FILE).is_file()):
        return {}
    return tomllib.loads((out / RUN_FILE).read_text(encoding="utf-8"))


def _forget(out: Path) -> None:
    """Remove what an earlier training left in a folder, and nothing else."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for file in (out / TENSORBOARD).glob("events.*"):
        file.unlink()


def _check_same_run(held: Mapping[str, Any], asked: Mapping[str, Any], out: Path) -> None:
    """Whether a folder's run is the one that is asked for; the device and the workers may differ.

    Raises:
        UsageError: another setting differs; the message names it.
    """
    # What a folder does not say was not yet a setting, and then it was as it is by default.
    a, b = flat(tomllib.loads(to_toml(TrainOptions(store="")))) | flat(held), flat(asked)
    differing = sorted(key for key in (a.keys() | b.keys()) - FREE if a.get(key) != b.get(key))
    if differing:
        listed = "; ".join(f"{key} was {a.get(key)!r}, now {b.get(key)!r}" for key in differing[:5])
        raise UsageError(
            f"{out} holds a run with other settings: {listed}. Go on with its own, "
            "choose another --out, or pass --overwrite to start it anew."
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
