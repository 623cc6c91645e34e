"""The settings of a training, from the defaults of the machine, a run file and the flags."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import PrintConfig
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.training.run_folder import TrainOptions
    from multiseg.training.staged_run import StagedRun


@dataclass(frozen=True)
class TrainFlags:
    """The flags that train and finetune share. None leaves a setting to the run file and the defaults."""

    run: Annotated[Path | None, typer.Option(help="TOML file with any of the settings.")] = None
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None
    rest: Annotated[
        str | None,
        typer.Option(
            help="How to treat lesions that are not in --labels: ignore (their voxels are not used) or background."
        ),
    ] = None
    hide: Annotated[
        list[str] | None,
        typer.Option(help="Do not learn from this annotation or sequence, DATABASE/ANNOTATION or DATABASE/SEQUENCE."),
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps in total; a larger number extends a finished run.", min=1)
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Patches per step.", min=1)] = None
    patch: Annotated[
        int | None, typer.Option(help="Edge of a patch in voxels (default in finetune: the model's).", min=8)
    ] = None
    learning_rate: Annotated[float | None, typer.Option(help="Initial learning rate.")] = None
    workers: Annotated[int | None, typer.Option(help="Processes that read patches.", min=0)] = None
    cache: Annotated[str | None, typer.Option(help="Memory for decoded cases, such as 4GiB.")] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None
    seed: Annotated[
        int | None, typer.Option(help="Seed for new weights, dropout, sampling and the choice of cases.")
    ] = None
    drop: Annotated[str | None, typer.Option(help="How modalities are dropped: uniform, none, bernoulli, subsets.")] = (
        None
    )
    cases: Annotated[int | None, typer.Option(help="Maximum number of training cases per database.", min=1)] = None
    fold: Annotated[
        str | None,
        typer.Option(
            help="Cross-validation: leave out one of several folds of people, 0/5 to 4/5; see evaluate --folds."
        ),
    ] = None
    fold_seed: Annotated[int | None, typer.Option(help="Seed of the folds, one for all runs of them (default 0).")] = (
        None
    )
    augment: Annotated[
        str | None, typer.Option(help="none, published or standard; replaces the \\[augment] table of the run file.")
    ] = None
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume although the run's cases in the store have changed; logged."),
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an existing run, with its brain network, and start over.")
    ] = False
    print_config: PrintConfig = False

    def settings(self) -> dict[str, Any]:
        """The flags as nested settings, as in a run file."""
        patch = (self.patch,) * 3 if self.patch else None
        draw = {"patch": patch, "drop": self.drop, "num_cases": self.cases, "seed": self.seed}
        return {
            "databases": self.database, "hide": self.hide, "device": self.device, "seed": self.seed, "rest": self.rest,
            "fold": self.fold, "fold_seed": self.fold_seed,
            "stream": {"batch_size": self.batch_size, "workers": self.workers, "cache": self.cache, "draw": draw},
            "augment": {"preset": self.augment, "seed": self.seed},
            "fit": {"num_steps": self.steps, "learning_rate": self.learning_rate},
        }  # fmt: skip


def options_from(store: str, out: Path | None, flags: TrainFlags, others: dict[str, Any]) -> TrainOptions:
    """The options of a run, from the defaults of the machine and of a parent model, the run file, and the flags.

    Flags override the run file, and that overrides defaults. A run in `out` that is resumed keeps its number of steps
    if no other is set.

    Args:
        others: nested settings from the flags of this verb alone.

    Raises:
        UsageError: no store is named, or a setting is invalid or would be ignored.
    """
    from multiseg.training.staged_run import StagedRun

    run = run_from(store, out, flags, others)
    if isinstance(run, StagedRun):
        raise UsageError(f"{flags.run} has stages, which only multiseg train takes: leave them out.")
    return run


def run_from(store: str, out: Path | None, flags: TrainFlags, others: dict[str, Any]) -> TrainOptions | StagedRun:
    """As `options_from`, for a run file that may have stages; flags override every stage."""
    from multiseg.config import merged, read_run_file
    from multiseg.training.staged_run import StagedRun, stage_folder

    file = read_run_file(flags.run) if flags.run else {}
    if not isinstance(file.get("stage"), list):
        return _options_of(file, store, out, flags, others)
    tables = file.pop("stage")
    whole = _options_of(file, store, None, flags, others)
    stages = []
    for number, table in enumerate(tables, start=1):
        name = table["name"]
        own = {"stage": name, **{key: value for key, value in table.items() if key != "name"}}
        folder = stage_folder(out, number, name) if out else None
        stages.append(_options_of(merged(file, own), store, folder, flags, others))
    return StagedRun(whole, tuple(stages))


def _options_of(
    file: dict[str, Any], store: str, out: Path | None, flags: TrainFlags, others: dict[str, Any]
) -> TrainOptions:
    """The options from the settings of a run file; see `options_from`."""
    import torch

    from multiseg.config import defaults, merged, to_options
    from multiseg.store.hierarchy import is_remote
    from multiseg.training.run_folder import held_settings

    file = dict(file)
    if flags.augment:
        file.pop("augment", None)  # its numbers adjust the preset of the file, not that of the flag
    settings = merged(file, {**flags.settings(), **others, "store": store or None})
    if not settings.get("store"):
        raise UsageError("name the store to train on, such as brain.zarr.")
    if not is_remote(settings["store"]):
        settings["store"] = str(Path(settings["store"]).resolve())
    if out and not flags.overwrite:
        num_steps = held_settings(out).get("fit", {}).get("num_steps")
        settings = merged({"fit": {"num_steps": num_steps}}, settings)
    device = str(settings.get("device", "auto"))
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if settings.get("start", {}).get("model"):
        settings["start"]["model"] = str(Path(settings["start"]["model"]).resolve())
        return _from_parent(cuda, settings)
    return to_options(merged(defaults(cuda, settings), settings))


def check_run_file(run: Path | None, out: Path, resumes: bool) -> None:
    """Check that a run does not overwrite the file that its settings were read from.

    Args:
        run: the file that the settings were read from, if any.
        resumes: whether a run in `out` is resumed, which may be given its own file.

    Raises:
        UsageError: the run would overwrite the file.
    """
    from multiseg.training.run_folder import RUN_FILE

    written = out / RUN_FILE
    if run and written.exists() and written.samefile(run) and not resumes:
        raise UsageError(
            f"the run in {out} would overwrite {run} with all its settings, so that yours would be lost. Move it, or "
            "choose another --out."
        )


def print_settings(options: TrainOptions | StagedRun, as_json: bool) -> None:
    """Print all settings, as a run file or as JSON."""
    from multiseg.cli.console import print_json
    from multiseg.training.run_folder import to_toml, with_all_seeds
    from multiseg.training.staged_run import StagedRun

    if isinstance(options, StagedRun):
        print_json(options.to_json()) if as_json else typer.echo(options.to_toml(), nl=False)
    elif as_json:
        print_json(asdict(with_all_seeds(options)))
    else:
        typer.echo(to_toml(options), nl=False)


def _from_parent(cuda: bool, settings: dict[str, Any]) -> TrainOptions:
    """Options of a fine-tuning: network and labels of the parent model, and its patch unless another is set."""
    from multiseg.config import defaults, merged, to_options
    from multiseg.models.saved import model_path, read_info
    from multiseg.training.prepared_run import inherited

    parent = read_info(model_path(Path(settings["start"]["model"])))
    below = defaults(cuda, merged(settings, {"model": {"builder": parent.builder}}))
    below = merged(below, {"stream": {"draw": {"patch": parent.patch}}})
    options = inherited(to_options(merged(below, settings)), parent)
    # Through JSON, so that tuples become lists, as in a run file.
    inherited_settings = json.loads(json.dumps({"model": asdict(options.model), "labels": options.labels}))
    for name, expected in inherited_settings.items():
        if name not in settings:
            continue
        value = settings[name]
        if (merged(expected, value) if name == "model" else list(value)) != expected:
            raise UsageError(
                f"{name} is {value}, but a run that starts from {settings['start']['model']} keeps its {name}: "
                f"{expected}. Leave {name} out."
            )
    return options
