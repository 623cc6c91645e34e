"""Verb: train."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.cli.train_flags import TrainFlags, check_run_file, print_settings, run_from
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.models.saved import ModelInfo
    from multiseg.training.events import Event, Validated
    from multiseg.training.run import TrainResult
    from multiseg.training.run_folder import TrainOptions

LINE_SECONDS = 15
"""Time between two lines of progress if there is no terminal."""


def train_command(
    store: Annotated[str, typer.Argument(help="The store to train on.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Network, such as multi_unet or multi_unet_plus, or MODULE:NAME.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help='Structures to segment, such as "lesion" (default) or "oedema,tissue:CSF"; or one of tissues, '
            "tissues+lesion, lesions-by-pathology."
        ),
    ] = None,
    *,
    flags: TrainFlags,
    resume: Annotated[bool, typer.Option("--resume", help="Resume; fail if there is no run to resume.")] = False,
    as_json: AsJson = False,
) -> int:
    """Train one model on all databases of a store. To resume a run, use the same command again.

    Examples:

    multiseg train brain.zarr --out runs/joint

    multiseg train brain.zarr --print-config > run.toml

    multiseg train brain.zarr --labels tissues+lesion --hide wmh/tissue --out runs/anatomy

    multiseg train --run run.toml --out runs/mine

    multiseg train brain.zarr --fold 0/5 --out runs/fold-0

    multiseg train brain.zarr --out runs/fused --model maf_unet --drop subsets --cases 20

    torchrun --nproc-per-node 2 -m -- multiseg train brain.zarr --out runs/two-cards
    """
    from multiseg.cli.console import messages, print_json
    from multiseg.training.distributed import is_first_process
    from multiseg.training.staged_run import StagedRun, stage_folder, train_stages

    names = [name.strip() for name in labels.split(",")] if labels else None
    run = run_from(store, out, flags, {"labels": names, "model": {"builder": model}})
    if flags.print_config:
        if isinstance(run, StagedRun):
            run = replace(run, whole=_with_listed_labels(run.whole))
            # Stages have the labels of the run.
            run = replace(run, stages=tuple(replace(stage, labels=run.whole.labels) for stage in run.stages))
        else:
            run = _with_listed_labels(run)
        print_settings(run, as_json)
        return 0
    if out is None:
        raise UsageError("name a folder for the run: --out runs/NAME.")
    first = stage_folder(out, 1, run.stages[0].stage) if isinstance(run, StagedRun) else out
    if resume and not (first / "resume.pt").is_file():
        raise UsageError(f"{first} has no run to resume (no resume.pt).")
    if isinstance(run, StagedRun):
        check_run_file(flags.run, out, resumes=not flags.overwrite)

        def stage_shown(options: TrainOptions, folder: Path) -> TrainResult:
            messages(quiet=not is_first_process()).print(f"Stage {folder.name}", markup=False)
            return train_shown(options, folder, flags, as_json)

        def case_shown(text: str) -> None:
            messages().print(text, soft_wrap=True, markup=False)

        result = train_stages(run, out, flags.overwrite, stage_shown, case_shown)
    else:
        result = train_shown(run, out, flags, as_json)
    if as_json and is_first_process():
        print_json({"run": str(out), "step": result.step, "finished": result.finished, "best": result.best})
    return 0 if result.finished else 130


def _with_listed_labels(options: TrainOptions) -> TrainOptions:
    """The options with the structures that a word among the labels means; only then the store is opened."""
    from multiseg.labels import WORDS
    from multiseg.training.prepared_run import with_listed_labels

    return with_listed_labels(options)[0] if set(options.labels) & set(WORDS) else options


def train_shown(options: TrainOptions, out: Path, flags: TrainFlags, quiet: bool) -> TrainResult:
    """Train with a progress bar (lines if there is no terminal), and print a summary."""
    from multiseg.cli.command_note import note_command
    from multiseg.cli.console import messages, progress_bar
    from multiseg.models.saved import model_path, read_info
    from multiseg.training.distributed import is_first_process
    from multiseg.training.run import train

    check_run_file(flags.run, out, resumes=(out / "resume.pt").is_file() and not flags.overwrite)
    is_first = is_first_process()
    console = messages(quiet=not is_first)

    def begin(info: ModelInfo) -> None:
        if is_first:
            note_command(out, options.device)
        if options.start.model:
            console.print(_channels(info), soft_wrap=True)

    with progress_bar("train", options.fit.num_steps, "preparing", quiet=not is_first) as bar:
        show = ShownProgress(bar, console, options.fit.num_steps, lines=bar.disable and not quiet)
        result = train(options, out, flags.overwrite, show.event, begin, flags.accept_changes)
    if not result.finished:
        console.print(f"Stopped after step {result.step}, saved.", soft_wrap=True)
        return result
    if result.steps_before == result.step:
        console.print(
            f"{out} is already finished, after {result.step} steps. To continue, give a larger number: --steps NUMBER.",
            soft_wrap=True,
        )
    info = read_info(model_path(out))
    channels = "; ".join(f"{name} from {', '.join(info.trained_on[name])}" for name in info.axis)
    best = f"best validation Dice {result.best:.3f}"
    if math.isnan(result.best):
        best = "no validation cases, so the model is that of the last step"
    console.print(f"{out}: {result.step} steps, {best}. Channels: {channels}.", soft_wrap=True)
    if never_found := _never_found(result.history):
        console.print(
            f"The Dice of {', '.join(never_found)} was 0 in every validation: the model has not learnt to find it.",
            soft_wrap=True,
        )
    return result


def _never_found(history: Sequence[Mapping[str, float]]) -> list[str]:
    """The structures, as "DATABASE/STRUCTURE", whose Dice was 0 in every validation."""
    names = dict.fromkeys(name for entry in history for name in entry if "/" in name)
    return [name for name in names if all(entry[name] == 0 for entry in history if name in entry)]


def _channels(info: ModelInfo) -> str:
    """The channel of each sequence in a fine-tuning, as a sentence."""
    last = info.ancestry[-1]
    parts = [f"{name} takes the channel of {old}" for name, old in last["assigned"].items()]
    parts += [f"{name} gets a new channel" for name in last["grown"]]
    unchanged = [name for name in info.axis if name not in last["assigned"] and name not in last["grown"]]
    parts += [f"{', '.join(unchanged)} as before"] if unchanged else []
    return f"Channels: {'; '.join(parts)}."


class ShownProgress:
    """Shows events as a progress bar, or as lines if there is no terminal."""

    def __init__(self, bar: Any, console: Any, num_steps: int, lines: bool) -> None:
        self.bar, self.console, self.num_steps, self.lines = bar, console, num_steps, lines
        self.loss, self.waiting, self.last_line_time = 0.0, 0.0, time.monotonic() - LINE_SECONDS

    def event(self, event: Event) -> None:
        from multiseg.training.events import Noted, Validated

        if isinstance(event, Noted):
            self.console.print(f"{event.code}: {event.message}", soft_wrap=True, markup=False)
            return
        if isinstance(event, Validated):
            self.console.print(_validation_line(event), soft_wrap=True)
            return
        if event.skipped:
            self.console.print(
                f"step {event.step}: skipped, since loss or gradient is not finite; patches from {event.skipped}"
            )
        # Running means, which start at the first value.
        weight = 0.05 if self.loss else 1.0
        self.loss += weight * (event.loss - self.loss) if math.isfinite(event.loss) else 0.0
        self.waiting += weight * (event.waiting - self.waiting)
        details = f"loss {self.loss:.3f}  {event.patches_per_second:.1f} patches/s  waiting for data {self.waiting:.0%}"
        self.bar.update(0, completed=event.step, details=details)
        if self.lines and time.monotonic() - self.last_line_time >= LINE_SECONDS:
            self.last_line_time = time.monotonic()
            self.console.print(f"step {event.step}/{self.num_steps}  {details}", soft_wrap=True)


def _validation_line(event: Validated) -> str:
    if not event.parts:
        return f"step {event.step}: saved; there are no validation cases"
    parts = "  ".join(f"{name} {'-' if math.isnan(dice) else f'{dice:.3f}'}" for name, dice in event.parts.items())
    if event.num_absent:
        parts += f"  false alarms {event.num_false_alarms} of {event.num_absent}"
    best = "  (best so far)" if event.is_best else ""
    kinds = ", ".join(f"{kind} {dice:.3f}" for kind, dice in event.kinds.items()) if len(event.kinds) > 1 else ""
    score = f"{event.score:.3f}{f' ({kinds})' if kinds else ''}"
    return f"step {event.step}: validation Dice {score}  {parts}{best}"
