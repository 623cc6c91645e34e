"""Verb: finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.cli.train import train_shown
from multiseg.cli.train_flags import TrainFlags, options_from, print_settings
from multiseg.errors import UsageError


def finetune_command(
    model: Annotated[Path, typer.Argument(help="A run folder or a model file to start from.")],
    store: Annotated[str, typer.Argument(help="The store to learn from.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the new run.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(help="SWI=PD: the new sequence SWI takes the channel of PD, which the new data does not use."),
    ] = None,
    grow: Annotated[
        bool, typer.Option("--grow", help="Add a channel with fresh weights for each new sequence.")
    ] = False,
    progressive: Annotated[
        bool, typer.Option("--progressive", help="Freeze the model; train a second network that reads its features.")
    ] = False,
    head_first: Annotated[
        int | None, typer.Option(help="Steps at the start in which only the last layer is trained.", min=0)
    ] = None,
    *,
    flags: TrainFlags,
    as_json: AsJson = False,
) -> int:
    """Fine-tune a model on another store, which may have other sequences. To resume, run the same command again.

    A sequence that is new to the model takes a channel that the new data does not use: the one that fewest training
    cases had, or the one of --assign. The assignment is printed, and written into the new model.

    Examples:

    multiseg finetune runs/joint stroke.zarr --out runs/stroke

    multiseg finetune runs/joint stroke.zarr --out runs/stroke --assign DWI=T2 --grow --cases 20

    multiseg finetune runs/joint stroke.zarr --out runs/columns --progressive
    """
    from multiseg.cli.console import print_json
    from multiseg.models.saved import model_path, read_info
    from multiseg.training.distributed import is_first_process

    start = {
        "model": str(model),
        "method": "progressive" if progressive else None,
        "assign": _assignments(assign or []),
        "grow": grow or None,
        "head_steps": head_first,
    }
    options = options_from(store, out, flags, {"start": start})
    if flags.print_config:
        print_settings(options, as_json)
        return 0
    if out is None:
        raise UsageError("name a folder for the new run: --out runs/NAME.")
    result = train_shown(options, out, flags, as_json)
    if as_json and is_first_process():
        last = read_info(model_path(out)).ancestry[-1]
        print_json({
            "run": str(out), "step": result.step, "finished": result.finished, "best": result.best,
            "assigned": last["assigned"], "grown": last["grown"],
        })  # fmt: skip
    return 0 if result.finished else 130


def _assignments(texts: list[str]) -> dict[str, str]:
    """{"SWI": "PD"} from ["SWI=PD"].

    Raises:
        UsageError: a text is not of that form, or a sequence is assigned twice.
    """
    from multiseg.modalities import canonical_modality

    assigned: dict[str, str] = {}
    for text in texts:
        new, equals, old = (canonical_modality(part) or part for part in map(str.strip, text.partition("=")))
        if not (new and equals and old) or new in assigned:
            raise UsageError(f"--assign {text!r} is invalid: write SWI=PD, and each new sequence only once.")
        assigned[new] = old
    return assigned
