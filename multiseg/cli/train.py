"""Verb: train."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.cli.train_flags import TrainFlags, check_run_file, options_from, print_settings
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.models.saved import ModelInfo
    from multiseg.training.events import Event
    from multiseg.training.run import TrainResult
    from multiseg.training.run_folder import TrainOptions

LINE_SECONDS = 15
"""Off a terminal, a line of progress this often."""


def train_command(
    store: Annotated[str, typer.Argument(help="The store to learn from.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Network, such as multi_unet or multi_unet_plus, or MODULE:NAME.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help='What to tell apart, such as "lesion" (default) or "oedema,tissue:CSF".')
    ] = None,
    *,
    flags: TrainFlags,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on going on with a run that is there.")] = False,
    as_json: AsJson = False,
) -> int:
    """Train one model on all databases of a store. The same command again goes on where it was.

    Examples:

    multiseg train brain.zarr --out runs/joint

    multiseg train brain.zarr --print-config > run.toml

    multiseg train --run run.toml --out runs/mine

    multiseg train brain.zarr --out runs/fused --model maf_unet --drop subsets --cases 20

    torchrun --nproc-per-node 2 -m -- multiseg train brain.zarr --out runs/two-cards
    """
    from multiseg.cli.console import print_json
    from multiseg.training.distributed import is_first_process

    names = [name.strip() for name in labels.split(",")] if labels else None
    options = options_from(store, out, flags, {"labels": names, "model": {"builder": model}})
    if flags.print_config:
        print_settings(options, as_json)
        return 0
    if out is None:
        raise UsageError("say where the run goes: --out runs/NAME.")
    if resume and not (out / "resume.pt").is_file():
        raise UsageError(f"{out} holds no run to go on with (no resume.pt).")
    result = train_shown(options, out, flags, as_json)
    if as_json and is_first_process():
        print_json({"run": str(out), "step": result.step, "finished": result.finished, "best": result.best})
    return 0 if result.finished else 130


def train_shown(options: TrainOptions, out: Path, flags: TrainFlags, quiet: bool) -> TrainResult:
    """Train with a bar on a terminal, lines off it, and a sentence at the end."""
    from multiseg.cli.console import messages, progress_bar
    from multiseg.models.saved import model_path, read_info
    from multiseg.training.distributed import is_first_process
    from multiseg.training.run import train

    check_run_file(flags.run, out, goes_on=(out / "resume.pt").is_file() and not flags.overwrite)
    is_first = is_first_process()
    console = messages(quiet=not is_first)

    def tell_channels(info: ModelInfo) -> None:
        if options.start.model:
            console.print(_channels(info), soft_wrap=True)

    with progress_bar("train", options.fit.num_steps, "preparing", quiet=not is_first) as bar:
        show = _Progress(bar, console, options.fit.num_steps, lines=bar.disable and not quiet)
        result = train(options, out, flags.overwrite, show.event, tell_channels, flags.accept_changes)
    if not result.finished:
        console.print(f"Stopped after step {result.step}, saved.", soft_wrap=True)
        return result
    if result.steps_before == result.step:
        console.print(
            f"{out} is finished already: all {result.step} steps are done. More can be added: --steps NUMBER.",
            soft_wrap=True,
        )
    info = read_info(model_path(out))
    channels = "; ".join(f"{name} from {', '.join(info.trained_on[name])}" for name in info.axis)
    best = f"best validation Dice {result.best:.3f}"
    if math.isnan(result.best):
        best = "no validation case to judge by, so the model is that of the last step"
    console.print(f"{out}: {result.step} steps, {best}. Channels: {channels}.", soft_wrap=True)
    return result


def _channels(info: ModelInfo) -> str:
    """Which channel each sequence has in a fine-tuning, in words."""
    last = info.ancestry[-1]
    said = [f"{name} takes the channel of {old}" for name, old in last["assigned"].items()]
    said += [f"{name} gets a channel of its own" for name in last["grown"]]
    kept = [name for name in info.axis if name not in last["assigned"] and name not in last["grown"]]
    said += [f"{', '.join(kept)} as before"] if kept else []
    return f"Channels: {'; '.join(said)}."


class _Progress:
    """Turns events into a moving bar, or into lines off a terminal."""

    def __init__(self, bar: Any, console: Any, num_steps: int, lines: bool) -> None:
        self.bar, self.console, self.num_steps, self.lines = bar, console, num_steps, lines
        self.loss, self.waiting, self.said = 0.0, 0.0, time.monotonic() - LINE_SECONDS

    def event(self, event: Event) -> None:
        from multiseg.training.events import Noted, Validated

        if isinstance(event, Noted):
            self.console.print(f"{event.code}: {event.message}", soft_wrap=True, markup=False)
            return
        if isinstance(event, Validated):
            parts = "  ".join(
                f"{name} {'-' if math.isnan(value) else f'{value:.3f}'}" for name, value in event.parts.items()
            )
            if event.num_absent:
                parts += f"  false alarms {event.num_false_alarms} of {event.num_absent}"
            best = "  (best so far)" if event.is_best else ""
            if not event.parts:
                self.console.print(f"step {event.step}: saved; no validation case to say how good it is")
                return
            self.console.print(f"step {event.step}: validation Dice {event.score:.3f}  {parts}{best}", soft_wrap=True)
            return
        if event.skipped:
            self.console.print(f"step {event.step}: loss or gradient not finite, skipped; drawn from {event.skipped}")
        weight = 0.05 if self.loss else 1.0
        self.loss += weight * (event.loss - self.loss) if math.isfinite(event.loss) else 0.0
        self.waiting += weight * (event.waiting - self.waiting)
        details = f"loss {self.loss:.3f}  {event.patches_per_second:.1f} patches/s  waiting for data {self.waiting:.0%}"
        self.bar.update(0, completed=event.step, details=details)
        if self.lines and time.monotonic() - self.said >= LINE_SECONDS:
            self.said = time.monotonic()
            self.console.print(f"step {event.step}/{self.num_steps}  {details}", soft_wrap=True)
