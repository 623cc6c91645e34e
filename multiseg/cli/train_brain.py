"""Verb: train-brain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Device, Overwrite

if TYPE_CHECKING:
    from multiseg.training.brain_training import BrainOptions, TrainedBrain


def train_brain_command(
    store: Annotated[str, typer.Argument(help="The store whose brains are learnt.")],
    into: Annotated[
        Path, typer.Option(help="The run folder whose model will carry the network; or a file for it, .safetensors.")
    ],
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of two synthetic scans each.", min=1)] = 1200,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.", min=0)] = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Train a small network that finds the brain in a scan with its skull, whatever its contrast.

    It learns from synthetic scans: brains of the store's training cases with random contrasts, in random heads. Cases
    that show more than a brain are left out. The model of the run then carries it, also when it is packed, and
    `multiseg predict --brain-mask model` uses it.

    Examples:

    multiseg train-brain brain.zarr --into runs/joint

    multiseg train-brain brain.zarr --into brain.safetensors --database ms --database wmh
    """
    from multiseg.cli.console import messages, output, print_json, progress_bar
    from multiseg.cli.train import ShownProgress
    from multiseg.evaluation.brain_finding import LEARNT, has_learnt
    from multiseg.models.brain_network import NEWEST_RECIPE, place_in
    from multiseg.models.devices import resolve_device
    from multiseg.training.brain_training import BrainOptions, train_brain

    out = place_in(into, overwrite)
    options = BrainOptions(tuple(database or ()), steps, seed=seed, device=str(resolve_device(device)))
    with progress_bar("train-brain", steps, "preparing", quiet=as_json) as bar:
        show = ShownProgress(bar, messages(), steps, lines=bar.disable and not as_json)
        trained = train_brain(store, out, options, show.event)
    if as_json:
        print_json(_as_json(trained, options))
        return 0
    for name, reason in trained.left_out.items():
        messages().print(f"left out {name}: {reason}", soft_wrap=True, markup=False)
    which = "held-out cases" if trained.is_held_out else "the same cases, since the store has no validation case"
    output().print(
        f"{out}: learnt from {len(trained.cases)} brains; Dice {trained.dice:.3f} on {options.num_checks} synthetic "
        f"scans of {which}",
        soft_wrap=True,
        markup=False,
    )
    if not has_learnt(trained.dice):
        messages().print(
            f"It has not learnt enough (a Dice of {LEARNT[NEWEST_RECIPE]} or more): predict will call its masks "
            "doubtful (BRAIN_UNSURE). Train it for more steps: "
            f"--steps {max(2 * steps, BrainOptions.num_steps)} --overwrite.",
            soft_wrap=True,
            markup=False,
        )
    return 0


def _as_json(trained: TrainedBrain, options: BrainOptions) -> dict[str, object]:
    return {
        "path": str(trained.path),
        "cases": [f"{case.database}/{case.name}" for case in trained.cases],
        "left_out": dict(trained.left_out),
        "dice": trained.dice,
        "synthetic_scans": options.num_checks,
        "held_out": trained.is_held_out,
    }
