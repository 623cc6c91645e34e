"""The settings of a training, and its run folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from multiseg.commands_log import COMMANDS
from multiseg.errors import UsageError
from multiseg.files import check_folder, lock_folder, write_atomically
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.modalities import as_names
from multiseg.models.brain_network import delete_in
from multiseg.models.builders import multi_unet
from multiseg.models.saved import BEST, LAST
from multiseg.own import is_own
from multiseg.store.folds import read_fold
from multiseg.training.checkpoint import RESUME
from multiseg.training.fit import FitOptions
from multiseg.training.meta import MetaOptions
from multiseg.training.optimisers import OptimiserOptions
from multiseg.training.run_data import DATA
from multiseg.training.start import StartOptions
from multiseg.training.trackers import TrackOptions

RUN_FILE, LOG, TENSORBOARD, LOCK = "run.toml", "log.jsonl", "tensorboard", ".lock"
FILES = (BEST, LAST, RESUME, LOG, RUN_FILE, DATA, COMMANDS)
READING = ("workers", "start", "ahead", "cache", "checksums", "on_death", "disk_cache", "disk_budget")
COMPUTING = ("save_minutes", "channels_last", "compile", "deterministic")
FREE = frozenset(
    {
        "device",
        "start.model",
        "meta.adapt_to",
        "meta.pseudo_labels",
        *(f"track.{field.name}" for field in fields(TrackOptions)),
        "fit.num_steps",
        *(f"fit.{name}" for name in COMPUTING),
        *(f"stream.{name}" for name in READING),
    }
)
"""Settings that may differ when a run resumes: they do not change what is learnt. The parent model and pseudo-labels
may have moved; digests show that they are the same, and were adapted to the same lesions. A new number of steps changes
the schedule from then on, with a notice; it cannot be less than the steps done."""


@dataclass(frozen=True)
class ModelOptions:
    """Which network: its name and numbers; by default the published one.

    Attributes:
        builder, norm: see `multiseg.models.builders.NETWORKS` and `multiseg.models.blocks.NORMS`; your own network as
            module:name.
        widths: channels of each level, from the highest resolution down; their number is the depth.
        dropout: probability with which a value of the features is set to 0 in training.
        numbers: keyword arguments of your own network; networks of multiseg take widths, dropout and norm instead.
    """

    builder: str = "multi_unet"
    widths: tuple[int, ...] = multi_unet.widths
    dropout: float = multi_unet.dropout
    norm: str = multi_unet.norm
    numbers: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TrainOptions:
    """All settings of one training.

    Attributes:
        store: path or URL.
        databases: names in the store; empty takes all.
        labels: what the model segments: "lesion" stands for every lesion, "tissue:NAME" for a tissue, "pathology:NAME"
            for every lesion in databases of a pathology; or one of `multiseg.labels.WORDS`, such as "tissues+lesion",
            which `train` replaces by the structures of the store.
        hide: annotations and sequences, as "DATABASE/NAME", that training and validation do not read; `evaluate` does.
        rest: how voxels of lesion structures that are not in `labels` count: "background" or "ignore"; "" refuses them.
        start: the model to fine-tune, if any; it then sets `labels` and `model`.
        device: "auto" (CUDA if there is any), "cpu", "cuda" or "cuda:N".
        seed: of weights and dropout, and of draws and augmentation unless these have a seed of their own.
        stage: the part of a two_branch network that learns, see `multiseg.training.stages`; "" for the whole network.
            The labels may then name structures of any database of the store, since other stages learn them.
        fold: such as "0/5": one fold of a cross-validation is left out of the training, see `store.folds`; "" goes by
            the splits of the store.
        fold_seed: of the folds; all runs of one cross-validation have the same, whatever their `seed` is.

    Raises:
        UsageError: the fold is invalid, or a seed of folds is set without a fold.
    """

    store: str | Path
    databases: str | tuple[str, ...] = ()
    labels: str | tuple[str, ...] = ("lesion",)
    hide: str | tuple[str, ...] = ()
    rest: str = ""
    device: str = "auto"
    seed: int = 0
    stage: str = ""
    fold: str = ""
    fold_seed: int = 0
    start: StartOptions = StartOptions()
    model: ModelOptions = ModelOptions()
    stream: StreamOptions = StreamOptions()
    augment: AugmentOptions = AugmentOptions()
    fit: FitOptions = FitOptions()
    optimiser: OptimiserOptions = OptimiserOptions()
    meta: MetaOptions = MetaOptions()
    track: TrackOptions = TrackOptions()

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", str(self.store))
        for name in ("databases", "labels", "hide"):
            object.__setattr__(self, name, as_names(getattr(self, name)))
        if self.fold:
            read_fold(self.fold, self.fold_seed)
        elif self.fold_seed:
            raise UsageError(f'fold_seed is {self.fold_seed}, but there is no fold: set one, such as fold = "0/5".')


def numbers_of(model: ModelOptions) -> dict[str, Any]:
    """The keyword arguments of the network, as its model file will hold them.

    Raises:
        UsageError: a number is set that the network does not take, or one that a model file cannot hold.
    """
    if not is_own(model.builder):
        if model.numbers:
            raise UsageError(
                f"[model.numbers] sets {', '.join(model.numbers)}, but it is for networks of your own: set widths, "
                f"dropout and norm of {model.builder} in [model] itself."
            )
        return {"widths": list(model.widths), "dropout": model.dropout, "norm": model.norm}
    plain = ModelOptions(model.builder)
    unused = [name for name in ("widths", "dropout", "norm") if getattr(model, name) != getattr(plain, name)]
    if unused:
        raise UsageError(
            f"[model] sets {', '.join(unused)}, which {model.builder} does not take: put the numbers of your own "
            "network in [model.numbers]."
        )
    try:
        numbers: dict[str, Any] = json.loads(json.dumps(dict(model.numbers), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"a model file cannot hold model.numbers: {error}. Give plain numbers and texts.") from None
    return numbers


def seeded(seed: int, stream: StreamOptions, augment: AugmentOptions) -> tuple[StreamOptions, AugmentOptions]:
    """Draws and augmentation with the seed of a training, unless they have their own."""
    if stream.draw.seed is None:
        stream = replace(stream, draw=replace(stream.draw, seed=seed))
    if augment.seed is None:
        augment = replace(augment, seed=seed)
    return stream, augment


def with_all_seeds(options: TrainOptions) -> TrainOptions:
    """The options with a seed for draws and augmentation."""
    stream, augment = seeded(options.seed, options.stream, options.augment)
    return replace(options, stream=stream, augment=augment)


def to_toml(options: TrainOptions) -> str:
    """A run file with every setting."""
    return tomli_w.dumps(asdict(with_all_seeds(options)))


@contextmanager
def claimed_folder(out: Path, options: TrainOptions, overwrite: bool) -> Iterator[None]:
    """Lock the folder for this run: it has no saved steps, or the same settings, or `overwrite` clears it.

    `write_settings` writes the settings later, when it is clear that the run can begin.

    Raises:
        ResourceError: another process trains into it.
        UsageError: it holds a run with other settings, a model without a run, or something else, such as a store or a
            folder of scans.
    """
    check_folder(out, own=(RUN_FILE, LOCK, BEST, LAST))
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out / LOCK, "another training writes to it. Wait for it to end, or choose another --out."):
        _take_over(out, options, overwrite)
        yield


def _take_over(out: Path, options: TrainOptions, overwrite: bool) -> None:
    if overwrite:
        _delete_run(out)
    for name in FILES:
        for half_written in out.glob(f".{name}.*.tmp"):  # by a process that was killed
            half_written.unlink()
    has_settings = (out / RUN_FILE).is_file()
    models = [name for name in (BEST, LAST) if (out / name).exists()]
    if models and not has_settings and not (out / RESUME).is_file():
        raise UsageError(
            f"{out} holds a model ({models[0]}), but no run. Choose another --out, or pass --overwrite to delete it."
        )
    # A model without resume.pt is of a save that was interrupted.
    if has_settings and (models or (out / RESUME).is_file()):
        _check_same_run(_read_settings(out), tomllib.loads(to_toml(options)), out)


def write_settings(out: Path, options: TrainOptions) -> None:
    """Write the settings of the run into its folder."""
    write_atomically(out / RUN_FILE, to_toml(options).encode())


def held_settings(out: Path) -> dict[str, Any]:
    """The settings of the run in a folder, nested; empty if no step is saved, since they may then change."""
    return _read_settings(out) if (out / RESUME).is_file() and (out / RUN_FILE).is_file() else {}


def _read_settings(out: Path) -> dict[str, Any]:
    return tomllib.loads((out / RUN_FILE).read_text(encoding="utf-8"))


def _delete_run(out: Path) -> None:
    """Delete the files of an earlier training and the brain network of its model, and nothing else."""
    if any((out / name).exists() for name in FILES):
        delete_in(out)  # first, so that an interruption leaves no brain network without its model
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for file in (out / TENSORBOARD).glob("events.*"):
        file.unlink()


def _check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], out: Path) -> None:
    """Raises UsageError if a setting that is not `FREE` differs; the message names it."""
    # A setting that the folder lacks did not exist yet, and had the effect of its default.
    before, now = flat(tomllib.loads(to_toml(TrainOptions(store="")))) | flat(saved), flat(current)
    differing = sorted(key for key in (before.keys() | now.keys()) - FREE if before.get(key) != now.get(key))
    if differing:
        listed = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in differing[:5])
        raise UsageError(
            f"{out} holds a run with other settings: {listed}. Use its settings, choose another --out, or pass "
            "--overwrite to start over."
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        settings |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return settings
