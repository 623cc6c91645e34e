"""Verb: predict."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import Adapt, AsJson, Device, Fuse, Overwrite, checked_adapt
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.evaluation.prediction import Prediction


def predict_command(
    model: Annotated[Path, typer.Argument(help="A run folder or a model file.")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="FLAIR=scan.nii.gz, or a file name that contains the sequence: t1.nii.gz. With --fuse the second "
            "model comes first, with --ensemble all others."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the segmentation (.nii.gz).")],
    brain_mask: Annotated[
        str, typer.Option(help='A file, nonzero, otsu, or "command PROGRAM {image} {mask}" (default: as in training).')
    ] = "",
    reference: Annotated[
        str, typer.Option(help="Sequence that gives the segmentation its grid and header (default: first).")
    ] = "",
    overlap: Annotated[float, typer.Option(help="Overlap of the sliding windows.", min=0, max=0.9)] = 0.5,
    headers_disagree: Annotated[
        str, typer.Option(help="If mask and image have one shape but other positions: refuse, world or array.")
    ] = "refuse",
    picture: Annotated[Path | None, typer.Option(help="Also draw the segmentation on the images (.png).")] = None,
    fuse: Fuse = "",
    adapt: Adapt = "off",
    lesion_mask: Annotated[
        Path | None, typer.Option(help="A mask of the lesion for --adapt (default: found by the model).")
    ] = None,
    ensemble: Annotated[
        bool,
        typer.Option("--ensemble", help="Several models vote; with --adapt on, each of them adapted in six ways."),
    ] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Segment one patient from any subset of sequences, on the grid of the first image.

    Example:

    multiseg predict runs/joint FLAIR=flair.nii.gz T1=t1.nii.gz -o lesions.nii.gz

    multiseg predict runs/tissue runs/lesion --fuse lesion-over-tissue FLAIR=flair.nii.gz T1=t1.nii.gz -o all.nii.gz

    multiseg predict runs/fold1 runs/fold2 --ensemble --adapt on FLAIR=flair.nii.gz T1=t1.nii.gz -o all.nii.gz
    """
    from multiseg.evaluation.montage import PNG
    from multiseg.evaluation.prediction import input_files, name_images, predict, save_overlay
    from multiseg.files import check_files
    from multiseg.models.devices import resolve_device
    from multiseg.models.fused import load_fused

    resolved = str(resolve_device(device))
    is_adapted = checked_adapt(adapt)
    if fuse and (is_adapted or ensemble):
        raise UsageError("--adapt and --ensemble do not take two models that answer as one: leave out --fuse.")
    models, scans = ([model, Path(images[0])], images[1:]) if fuse else ([model], images)
    others = [Path(text) for text in takewhile(_names_model, scans)] if ensemble else []
    files = name_images(scans[len(others) :])
    if picture:
        sources = input_files(model, files, brain_mask, lesion_mask, others)
        check_files([picture], sources, overwrite, PNG)  # fail before the work
    used = load_fused(models, fuse, resolved) if fuse else model
    result = predict(
        used, files, out, brain_mask, reference, overlap, headers_disagree, resolved, overwrite, is_adapted,
        lesion_mask, others if ensemble else None,
    )  # fmt: skip
    if picture:
        save_overlay(picture, result, overwrite)
    _print_prediction(result, as_json, ensemble)
    return 0


def _print_prediction(result: Prediction, as_json: bool, ensemble: bool) -> None:
    from multiseg.cli.console import messages, output, print_json

    if as_json:
        print_json({
            "path": str(result.path), "reference": result.reference, "used": list(result.used),
            "left_out": list(result.left_out), "volumes_ml": dict(result.volumes_ml), "learnt": dict(result.learnt),
            "doubts": [
                {"severity": str(doubt.severity), "code": doubt.code, "message": doubt.message}
                for doubt in result.doubts
            ],
            **({"adaptations": list(result.adaptations)} if result.adaptations else {}),
        })  # fmt: skip
        return
    for doubt in result.doubts:
        messages().print(f"{doubt.code}: {doubt.message}", soft_wrap=True, markup=False)
    for text in result.adaptations:
        messages().print(text, soft_wrap=True, markup=False)
    if result.left_out:
        who = "a model of the ensemble" if ensemble else "the model"
        messages().print(f"{', '.join(result.left_out)} left out: {who} has no trained channel for it.")
    if "not known" in result.learnt.values():
        messages().print("It is not known whether the model learnt from these scans: its file does not list all.")
    volumes = ", ".join(f"{name} {ml:.2f} ml" for name, ml in result.volumes_ml.items())
    output().print(
        f"{result.path}: {volumes}; from {', '.join(result.used)}, on the grid of {result.reference}",
        soft_wrap=True,
    )


def _names_model(text: str) -> bool:
    """Whether an argument is a run folder, a model file or a package, and not an image."""
    from multiseg.models.saved import ENDINGS

    return Path(text).is_dir() or text.endswith(ENDINGS)
