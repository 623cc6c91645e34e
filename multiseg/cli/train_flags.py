"""The settings of a training: what the machine, a run file and the flags say together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.training.run_folder import TrainOptions


@dataclass(frozen=True)
class TrainFlags:
    """What training and fine-tuning both take; None leaves a setting to the run file and the defaults."""

    run: Annotated[Path | None, typer.Option(help="TOML file with any of the settings.")] = None
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None
    rest: Annotated[
        str | None,
        typer.Option(help="What lesions are that the labels leave out: ignore (not looked at) or background."),
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps in all; more than a run has done extend it.", min=1)
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Patches a step.", min=1)] = None
    patch: Annotated[
        int | None, typer.Option(help="Edge of a patch in voxels (default in finetune: the model's).", min=8)
    ] = None
    learning_rate: Annotated[float | None, typer.Option(help="Of the optimiser, at the start.")] = None
    workers: Annotated[int | None, typer.Option(help="Processes that read patches.", min=0)] = None
    cache: Annotated[str | None, typer.Option(help="Memory for decoded cases, such as 4GiB.")] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None
    seed: Annotated[int | None, typer.Option(help="Of fresh weights, dropout, draws and the choice of cases.")] = None
    drop: Annotated[str | None, typer.Option(help="Law of modality drop: uniform, none, bernoulli, subsets.")] = None
    cases: Annotated[int | None, typer.Option(help="At most so many training cases a database.", min=1)] = None
    augment: Annotated[
        str | None, typer.Option(help="none, published or standard; takes the place of the run file's table.")
    ] = None
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume although the run's cases in the store have changed; logged."),
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where a run is there.")] = False
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting (TOML, or --json) and stop.")
    ] = False

    def settings(self) -> dict[str, Any]:
        """The tables of a run file that the flags stand for."""
        patch = (self.patch,) * 3 if self.patch else None
        draw = {"patch": patch, "drop": self.drop, "num_cases": self.cases, "seed": self.seed}
        return {
            "databases": self.database, "device": self.device, "seed": self.seed, "rest": self.rest,
            "stream": {"batch_size": self.batch_size, "workers": self.workers, "cache": self.cache, "draw": draw},
            "augment": {"preset": self.augment, "seed": self.seed},
            "fit": {"num_steps": self.steps, "learning_rate": self.learning_rate},
        }  # fmt: skip


def options_from(store: str, out: Path | None, flags: TrainFlags, others: dict[str, Any]) -> TrainOptions:
    """Defaults of the machine (and of the model that is started from), then the run file, then the flags.

    A run that is resumed in `out` keeps its number of steps where none is given: a default does not extend it.

    Args:
        others: the settings that only this verb has flags for.

    Raises:
        UsageError: no store is named, or something is said that cannot be or would go unheard.
    """
    import torch

    from multiseg.config import defaults, merged, read_run_file, to_options
    from multiseg.store.hierarchy import is_remote
    from multiseg.training.run_folder import held_settings

    file = read_run_file(flags.run) if flags.run else {}
    if flags.augment:
        file.pop("augment", None)  # its numbers belong to the preset that it names
    said = merged(file, {**flags.settings(), **others, "store": store or None})
    if not said.get("store"):
        raise UsageError("name the store to learn from, such as brain.zarr.")
    if not is_remote(said["store"]):
        said["store"] = str(Path(said["store"]).resolve())
    resumed = None if flags.overwrite else out
    held = held_settings(resumed).get("fit", {}).get("num_steps") if resumed else None
    said = merged({"fit": {"num_steps": held}}, said)
    device = str(said.get("device", "auto"))
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if said.get("start", {}).get("model"):
        said["start"]["model"] = str(Path(said["start"]["model"]).resolve())
        return _from_parent(cuda, said)
    return to_options(merged(defaults(cuda, said), said))


def check_run_file(run: Path | None, out: Path, goes_on: bool) -> None:
    """Whether a run may write its settings into its folder.

    Args:
        run: the file that they were read from, if any.
        goes_on: whether the run is there already: then the file in its folder is its own.

    Raises:
        UsageError: that would be written over the file that they were read from.
    """
    from multiseg.training.run_folder import RUN_FILE

    own = out / RUN_FILE
    if run and own.exists() and own.samefile(run) and not goes_on:
        raise UsageError(
            f"{run} is where the run in {out} writes every setting, so that yours would be lost. Move it, or choose "
            "another --out."
        )


def print_settings(options: TrainOptions, as_json: bool) -> None:
    """Every setting, as a run file or as JSON."""
    from multiseg.cli.console import print_json
    from multiseg.training.run_folder import to_toml, with_all_seeds

    if as_json:
        print_json(asdict(with_all_seeds(options)))
    else:
        typer.echo(to_toml(options), nl=False)


def _from_parent(cuda: bool, said: dict[str, Any]) -> TrainOptions:
    """Options of a fine-tuning: its network and labels are the model's, and so is its patch where nothing is said."""
    from multiseg.config import defaults, merged, to_options
    from multiseg.models.saved import model_path, read_info
    from multiseg.training.run import inherited

    parent = read_info(model_path(Path(said["start"]["model"])))
    below = defaults(cuda, merged(said, {"model": {"builder": parent.builder}}))
    below = merged(below, {"stream": {"draw": {"patch": parent.patch}}})
    options = inherited(to_options(merged(below, said)), parent)
    for name in ("model", "labels"):
        own = json.loads(json.dumps(asdict(options)[name]))
        if name in said and (merged(own, said[name]) if name == "model" else list(said[name])) != own:
            raise UsageError(
                f"{name} is said to be {said[name]}, but what starts from {said['start']['model']} has its own: {own}. "
                f"Leave {name} out."
            )
    return options
