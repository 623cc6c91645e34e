"""Verb: bids."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.cohort_run import AnswerFlags, CohortFlags, predict_all
from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.cli.source_flags import FolderFlags, worker_option
from multiseg.errors import UsageError

PARTICIPANT = "participant"


def bids_command(
    bids_dir: Annotated[Path, typer.Argument(help="The BIDS dataset.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the BIDS derivative.")],
    level: Annotated[str, typer.Argument(metavar="participant", help="The level of the analysis: participant.")],
    more_labels: Annotated[
        list[str] | None, typer.Argument(metavar="[LABEL]...", help="More labels of --participant-label.")
    ] = None,
    *,
    model: Annotated[Path, typer.Option(help="A run folder or a model file.")],
    participant_label: Annotated[
        list[str] | None, typer.Option(help="Only these participants: 01 02, with or without sub-.")
    ] = None,
    answer: AnswerFlags,
    workers: Annotated[int, worker_option("--workers", help="Patients at once.", min=1)] = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Segment a BIDS dataset into a BIDS derivative, by the command line of a BIDS App.

    It is `multiseg predict MODEL BIDS_DIR -o OUT --bids`. Several processes may work on different participants at once.

    Examples:

    multiseg bids study study/derivatives/multiseg participant --model runs/joint

    multiseg bids study out participant --participant-label 01 02 --model runs/joint --probabilities
    """
    if level != PARTICIPANT:
        raise UsageError(f"the level is {level!r}, but multiseg has only {PARTICIPANT}: its tables list everybody.")
    if more_labels and not participant_label:
        raise UsageError(f"{' '.join(more_labels)} is not understood. Name participants with --participant-label.")
    if answer.fuse or answer.ensemble:
        raise UsageError("--fuse and --ensemble take several models: use multiseg predict --bids.")
    folder, cohort = FolderFlags(layout="bids"), CohortFlags(bids=True, workers=workers)
    labels = [*(participant_label or ()), *(more_labels or ())]
    return predict_all(model, str(bids_dir), out, answer.options(), folder, cohort, overwrite, as_json, labels)
