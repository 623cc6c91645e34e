"""Verb: calibrate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Device

if TYPE_CHECKING:
    from multiseg.training.calibration import CalibrationResult


def calibrate_command(
    run: Annotated[Path, typer.Argument(help="A run folder or a model file, which gets the calibration.")],
    store: Annotated[str, typer.Option(help="A store (default: the one of the training).")] = "",
    database: Annotated[
        list[str] | None, typer.Option(help="Only these databases (default: those that the model learnt from).")
    ] = None,
    poor_dice: Annotated[
        float, typer.Option(help="The Dice below which a segmentation is poor, to choose when predict flags it.")
    ] = 0.5,
    overlap: Annotated[float, typer.Option(help="Overlap of the sliding windows.", min=0, max=0.9)] = 0.5,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Make a model's probabilities honest: fit temperatures for each number of sequences on the validation cases.

    The temperatures are stored in the model file. Segmentations do not change by a voxel. It also finds the expected
    Dice below which predict says: look at this. docs/evaluation.md explains both. The same command resumes what was
    interrupted. Evaluate afterwards: an evaluation is of the model file as it was then.

    Examples:

    multiseg calibrate runs/joint

    multiseg calibrate runs/joint --store hospital.zarr --database ours
    """
    from multiseg.cli.console import print_json
    from multiseg.cli.evaluation_tables import evaluation_progress
    from multiseg.models.devices import resolve_device
    from multiseg.training.calibration import CalibrateOptions, calibrate

    options = CalibrateOptions(tuple(database or ()), overlap, poor_dice)
    with evaluation_progress(as_json, "calibrate") as on_case:
        result = calibrate(run, store or None, options, str(resolve_device(device)), on_case)
    if as_json:
        print_json(result.to_json())
    else:
        _print_result(result)
        if result.is_new:
            _print_next(run, store)
    return 0


def _print_next(run: Path, store: str) -> None:
    """Print the commands that evaluate the model as it is now: its file is another one for earlier evaluations."""
    from multiseg.cli.console import messages
    from multiseg.commands_log import read_commands
    from multiseg.reports.run_record import evaluation_folders

    of_store = ["--store", store] if store else []
    commands = []
    for folder in evaluation_folders(run if run.is_dir() else run.parent):
        made_by = next((entry["command"] for entry in reversed(read_commands(folder)) if "command" in entry), "")
        words = shlex.split(made_by) or ["multiseg", "evaluate", str(run), *of_store]
        commands.append(shlex.join([*words, *([] if "--overwrite" in words else ["--overwrite"])]))
    text = "The evaluations of this folder were made before it. To make them again:" if commands else "Next:"
    commands = commands or [shlex.join(["multiseg", "evaluate", str(run), *of_store])]
    messages().print("\n".join([text, *dict.fromkeys(commands)]), soft_wrap=True, markup=False)


def _print_result(result: CalibrationResult) -> None:
    from multiseg.cli.console import messages, output, print_table
    from multiseg.errors import counted, few
    from multiseg.models.learnt_scans import NOT_KNOWN

    calibration, console = result.calibration, messages()
    if not result.is_new:
        output().print(f"{result.file} has this calibration already, and was not changed.", soft_wrap=True)
    if result.left_out:
        text = f"left out, since the model was trained on them: {few(result.left_out)}."
        console.print(text, soft_wrap=True, markup=False)
    if calibration.learnt == NOT_KNOWN:
        console.print(
            "It is not known whether the model was trained on these cases, since its file does not list all its scans: "
            "if it was, it is still too sure of itself.",
            soft_wrap=True,
        )
    rows = [
        [f"{fit.num_sequences}", *(f"{one:.3f}" for one in fit.temperatures), f"{fit.num_answers}",
         f"{fit.ece_before:.4f}", f"{fit.ece_after:.4f}", f"{fit.num_lower} of {fit.num_cells}"]
        for fit in result.fits
    ]  # fmt: skip
    columns = ["sequences", "T outside", "T inside", "answers", "ECE before", "after", "lower in"]
    if rows:
        print_table("Validation cases, in every subset of their sequences", columns, rows, right=columns)
    for fit in result.fits:
        sequences = counted(fit.num_sequences, "sequence")
        if fit.is_at_bound:
            console.print(
                f"{sequences}: a temperature is as far as the fit may go, so the best one is not "
                "known. More training, or more validation cases, may help.",
                soft_wrap=True,
            )
        if fit.num_lower == 0:
            console.print(
                f"{sequences}: the calibration error of the validation cases falls in no cell.",
                soft_wrap=True,
            )
    for num in result.not_fitted:
        console.print(
            f"{counted(num, 'sequence')}: no validation case has a structure; the nearest temperatures hold for them."
        )
    for name, least in calibration.look_below.items():
        rho = f"; Spearman's rho of expected and true Dice {result.spearman[name]:.2f}" if result.is_new else ""
        output().print(
            f"{name}: look at segmentations with an expected Dice below {least:.2f}{rho}", soft_wrap=True, markup=False
        )
    if result.is_new:
        output().print(
            f"{result.file}: temperatures of {len(calibration.temperatures)} numbers of sequences stored",
            soft_wrap=True,
        )
