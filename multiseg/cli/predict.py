"""Verb: predict."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.cohort_run import AnswerFlags, CohortFlags, predict_all
from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.cli.source_flags import FolderFlags
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.evaluation.prediction import Prediction
    from multiseg.evaluation.prediction_inputs import PredictOptions


@dataclass(frozen=True)
class PatientFlags:
    """What only one patient's files can have, but for `dicom_seg`."""

    picture: Annotated[Path | None, typer.Option(help="Also draw the segmentation on the images (.png).")] = None
    lesion_mask: Annotated[
        Path | None, typer.Option(help="A mask of the lesion for --adapt (default: found by the model).")
    ] = None
    dicom_seg: Annotated[
        str,
        typer.Option(
            metavar="SERIES_DIR",
            help="Also write a DICOM SEG that refers to the series in this folder, which the reference comes from; or "
            "source, if the reference is read from DICOM itself, also of many patients.",
        ),
    ] = ""


def predict_command(
    model: Annotated[Path, typer.Argument(help="A run folder or a model file.")],
    source: Annotated[
        list[str],
        typer.Argument(
            help="One patient: FLAIR=scan.nii.gz or FLAIR=DICOM_FOLDER, or a file name that contains the sequence: "
            "t1.nii.gz. Or all patients of a folder, a manifest or a store. With --fuse the second model comes first, "
            "with --ensemble all others."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File for the segmentation (.nii.gz); of several patients a folder.")
    ],
    *,
    answer: AnswerFlags,
    patient: PatientFlags,
    cohort: CohortFlags,
    folder: FolderFlags,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Segment patients from any subset of sequences, on the grid of the first image of each.

    Of a folder, every case is written as OUT/CASE.nii.gz, of a store or a manifest as OUT/DATABASE/CASE.nii.gz, with
    the tables OUT/cases.csv and OUT/lesions.csv. The same command resumes what was interrupted. The exit code is 4 if
    some cases fail, 3 if all do.

    Examples:

    multiseg predict runs/joint FLAIR=flair.nii.gz T1=t1.nii.gz -o lesions.nii.gz

    multiseg predict runs/joint FLAIR=flair.nii.gz -o lesions.nii.gz --dicom-seg dicom/flair

    multiseg predict runs/joint study -o predicted

    multiseg predict runs/joint brain.zarr -o predicted --workers 4

    multiseg predict runs/joint bids -o bids/derivatives/multiseg --bids --probabilities

    multiseg predict runs/tissue runs/lesion --fuse lesion-over-tissue FLAIR=flair.nii.gz T1=t1.nii.gz -o all.nii.gz

    multiseg predict runs/fold-0 runs/fold-1 --ensemble mean --tta FLAIR=flair.nii.gz T1=t1.nii.gz -o all.nii.gz
    """
    others, images = _models_and_images(source, answer)
    options = replace(answer.options(others, patient.lesion_mask), dicom_seg=patient.dicom_seg)
    if len(images) == 1 and _is_cohort(images[0]):
        if patient != PatientFlags(dicom_seg=patient.dicom_seg):
            raise UsageError(f"--picture and --lesion-mask are for one patient, but {images[0]} has many.")
        return predict_all(model, images[0], out, options, folder, cohort, overwrite, as_json)
    if (folder, cohort) not in ((FolderFlags(), CohortFlags()), (FolderFlags(), CohortFlags(workers=1))):
        raise UsageError(
            "--as, --pattern, --modality, --yes, --bids, --workers and --scheduler are for a folder of patients."
        )
    _predict_one(model, images, out, options, patient.picture, overwrite, as_json)
    return 0


def _models_and_images(arguments: list[str], answer: AnswerFlags) -> tuple[list[Path], list[str]]:
    """The further models, and what is to be segmented.

    Raises:
        UsageError: nothing is left for one of them, or an argument is neither.
    """
    if answer.fuse:
        num = 1
    elif answer.ensemble:
        num = len(list(takewhile(_names_model, arguments)))
    else:
        num = 0
    if len(arguments) == num:
        raise UsageError("name what is to be segmented behind the models: images, a folder or a store.")
    if answer.ensemble and len(arguments) > num + 1 and not _names_image(arguments[num]):
        raise UsageError(
            f"{arguments[num]} is neither a model (a run, a model file or a package) nor an image whose name has a "
            "sequence. Correct its name, or give an image as FLAIR=scan.nii.gz."
        )
    return [Path(text) for text in arguments[:num]], arguments[num:]


def _is_cohort(text: str) -> bool:
    """Whether an argument is a folder, a manifest or a store, and not an image."""
    from multiseg.store.formats.nifti_zarr import is_nifti_zarr
    from multiseg.store.hierarchy import is_remote

    if is_nifti_zarr(Path(text)):
        return False
    return is_remote(text) or Path(text).is_dir() or Path(text).suffix.lower() in (".toml", ".csv", ".json")


def _names_model(text: str) -> bool:
    """Whether an argument is a run folder, a model file or a package, and not what is to be segmented."""
    from multiseg.cli.info import is_model
    from multiseg.models.saved import ENDINGS

    return text.endswith(ENDINGS) or (Path(text).is_dir() and is_model(Path(text)))


def _names_image(text: str) -> bool:
    """Whether an argument says of which sequence it is."""
    from multiseg.sequence_reading import read_name

    return "=" in text or read_name(Path(text).name).sequence is not None


def _predict_one(
    model: Path,
    arguments: list[str],
    out: Path,
    options: PredictOptions,
    picture: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    from multiseg.cli.console import case_counter
    from multiseg.evaluation.case_answers import ENSEMBLES
    from multiseg.evaluation.case_panel import PNG
    from multiseg.evaluation.prediction import predict
    from multiseg.evaluation.prediction_inputs import input_files, name_images
    from multiseg.files import check_files

    files = name_images(arguments)
    if picture:
        check_files([picture], input_files(model, files, options), overwrite, PNG)  # fail before the work
    with case_counter("predict") as on_step:
        result = predict(model, files, out, options, overwrite, on_step)
    if picture:
        from multiseg.evaluation.overlay import save_overlay  # matplotlib is slow to import

        save_overlay(picture, result, overwrite)
    _print_prediction(result, as_json, options.together in ENSEMBLES)


def _print_prediction(result: Prediction, as_json: bool, ensemble: bool) -> None:
    from multiseg.cli.console import messages, output, print_json

    if as_json:
        print_json({
            "path": str(result.path), "reference": result.reference, "used": list(result.used),
            "left_out": list(result.left_out), "volumes_ml": dict(result.volumes_ml),
            "expected_dice": dict(result.expected_dice), "learnt": dict(result.learnt),
            "doubts": [
                {"severity": str(doubt.severity), "code": doubt.code, "message": doubt.message}
                for doubt in result.doubts
            ],
            **({"dicom_seg": str(result.dicom_seg)} if result.dicom_seg else {}),
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
    volumes = ", ".join(
        f"{name} {ml:.2f} ml{_expected(result.expected_dice[name])}" for name, ml in result.volumes_ml.items()
    )
    output().print(
        f"{result.path}: {volumes}; from {', '.join(result.used)}, on the grid of {result.reference}",
        soft_wrap=True,
    )


def _expected(dice: float) -> str:
    return "" if math.isnan(dice) else f" (expected Dice {dice:.2f})"
