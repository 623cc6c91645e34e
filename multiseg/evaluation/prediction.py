"""Segment one patient from files, on the grid of the patient's own images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from multiseg.allocator import keep_memory
from multiseg.errors import ModalityError
from multiseg.evaluation.decision import brain_of, decide
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.montage import PNG, save_montage
from multiseg.evaluation.panels import answer_panel
from multiseg.evaluation.preparation import brain_rule, network_input, recipe_for
from multiseg.files import check_files
from multiseg.modalities import canonical_modality
from multiseg.models.learnt_scans import TRAIN, VAL, how_learnt
from multiseg.models.saved import Model, ModelInfo, load_model
from multiseg.sequence_reading import read_name
from multiseg.store.cases import CaseFiles, ScanFile
from multiseg.store.findings import Doubt, Severity
from multiseg.store.formats.label_table import rows_of_space, table_files
from multiseg.store.formats.nifti import write_like
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.prepare import PreparedCase, prepare_case

NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Prediction:
    """A written segmentation and what it was made from.

    Attributes:
        left_out: given sequences that the model never learnt from.
        doubts: what a person should check.
        inputs: the files that it was made from.
        prepared: the images that the model saw.
        learnt: for each used sequence, how the model used this scan: "train" (trained on it), "val" (chosen by it),
            "" (not at all) or "not known".
    """

    path: Path
    reference: str
    used: tuple[str, ...]
    left_out: tuple[str, ...]
    volumes_ml: Mapping[str, float]
    doubts: tuple[Doubt, ...]
    inputs: tuple[Path, ...] = field(repr=False)
    prepared: PreparedCase = field(repr=False)
    learnt: Mapping[str, str] = field(default_factory=dict)


def name_images(arguments: Sequence[str]) -> dict[str, Path]:
    """Files by sequence, from "FLAIR=scan.nii.gz" or from a file name that contains its sequence.

    Raises:
        ModalityError: a name contains no sequence or several, or a sequence is given twice.
    """
    images: dict[str, Path] = {}
    for argument in arguments:
        spelling, equals, file = argument.partition("=")
        path = Path(file if equals else argument)
        reading = read_name(path.name)
        name = (canonical_modality(spelling) or spelling) if equals else reading.sequence
        if name is None:
            raise ModalityError(
                f"{argument!r} does not show which sequence it is ({reading.why}). "
                f"Write FLAIR={argument} (or T1=, ...)."
            )
        if name in images:
            raise ModalityError(f"{images[name]} and {path} are both {name}. Give each sequence once.")
        images[name] = path
    return images


def predict(
    model: Path | str | Model,
    images: Mapping[str, Path | str],
    out: Path | str,
    brain_mask: Path | str | None = None,
    reference: str = "",
    overlap: float = 0.5,
    headers_disagree: str = "refuse",
    device: str = "cpu",
    overwrite: bool = False,
) -> Prediction:
    """Segment one patient from any subset of sequences, in any orientation and on any grids.

    The segmentation has the grid and header of the reference image: 0 background, 1.. the model's labels in their
    order, uint8. Outside the brain it is 0; see `multiseg.evaluation.decision`. The names of the labels are in the
    file and in the tables next to it (see `label_table`).

    Args:
        model: a model file, a run folder or a loaded model.
        images: files by sequence; the first is the reference unless `reference` names another. Of a reference that
            the model never learnt from, only the grid is used.
        brain_mask: a mask file, or "nonzero", "otsu" or "command PROGRAM ..." (see `Recipe.brain_mask`); None finds
            the brain as in the model's training data, unless these came with masks.
        overwrite: whether files of an earlier prediction may be replaced; an input never is.

    Raises:
        UsageError: `out` is not a name of a NIfTI file or may not be written (see `check_files`), or the model needs a
            brain mask.
        ModalityError: the model learnt from none of the sequences.
        SourceError: a file is missing or damaged, or its position in space does not fit the others.
    """
    keep_memory()
    out = Path(out)
    paths: dict[str, ScanFile] = {name: Path(file) for name, file in images.items()}
    sources = input_files(model, images, brain_mask)
    check_files([out], sources, overwrite, NIFTI)
    loaded = model if isinstance(model, Model) else load_model(model, device)
    info = loaded.info
    rows = rows_of_space(info.space)
    check_files(table_files(out, rows), sources, overwrite)
    usable = _usable(info, tuple(images), reference)
    reference = reference or next(iter(images))
    rule, mask = brain_rule(brain_mask)
    recipe, doubts = recipe_for(info, rule, reference, headers_disagree)
    needed = {name: path for name, path in paths.items() if name in usable or name == reference}
    files = CaseFiles(out.name, needed, brain_mask=mask)
    prepared = prepare_case(files, {}, recipe, only=usable)
    inputs, present = network_input(
        info, prepared.images, prepared.modalities, usable, prepared.intensity_above_outside
    )
    probabilities = predict_volume(loaded, inputs, present, info.patch, overlap)
    native = np.stack([resample(volume, prepared.grid, prepared.native, smooth=False) for volume in probabilities])
    brain = brain_of(prepared.images)
    native_brain = resample(brain.astype(np.float32), prepared.grid, prepared.native, smooth=False) >= 0.5
    labels = decide(native, info.space, native_brain)
    write_like(out, labels, prepared.native_header, rows)
    ml = float(np.prod(prepared.native.spacing_mm)) / 1000
    volumes = {
        name: float(np.count_nonzero(labels == code)) * ml for code, name in enumerate(info.space.names, start=1)
    }
    left_out = tuple(name for name in images if name not in usable)
    scans = zip(prepared.modalities, prepared.content, strict=True)
    learnt = {name: how_learnt(loaded.learnt, [digest]) for name, digest in scans}
    doubts += prepared.doubts + _learnt_doubts(learnt)
    return Prediction(out, reference, usable, left_out, volumes, doubts, sources, prepared, learnt)


def _usable(info: ModelInfo, given: Sequence[str], reference: str) -> tuple[str, ...]:
    """The given sequences that the model learnt from; raises ModalityError if there is none, or no such reference."""
    usable = info.usable(tuple(given))
    if not usable:
        raise ModalityError(
            f"the model learnt from {', '.join(name for name in info.axis if info.trained_on.get(name))}, "
            f"but was given {', '.join(given) or 'nothing'}. Give at least one of those."
        )
    if reference and reference not in given:
        raise ModalityError(f"the reference {reference!r} is not among the given sequences: {', '.join(given)}.")
    return usable


def _learnt_doubts(learnt: Mapping[str, str]) -> tuple[Doubt, ...]:
    doubts = []
    for kind, verb in ((TRAIN, "was trained on"), (VAL, "was chosen by (validation)")):
        names = ", ".join(name for name in learnt if learnt[name] == kind)
        if names:
            text = f"the model {verb} this same scan of {names}: the result says nothing about new patients."
            doubts.append(Doubt(Severity.WARNING, "LEARNT_FROM", text))
    return tuple(doubts)


def input_files(
    model: Path | str | Model, images: Mapping[str, Path | str], brain_mask: Path | str | None = None
) -> tuple[Path, ...]:
    """The files that a prediction is made from, which must not be overwritten."""
    files = [Path(path) for path in images.values()]
    files += [] if isinstance(model, Model) else [Path(model)]
    _, mask = brain_rule(brain_mask)
    return (*files, *([mask] if mask else []))


def save_overlay(path: Path, prediction: Prediction, overwrite: bool = False) -> None:
    """Draw the segmentation, read back from its file, over the images that the model saw, on the patient's own grid.

    The images are where preparation placed them, by their headers or by registration.

    Raises:
        UsageError: the file may not be written, see `check_files`.
    """
    check_files([path], prediction.inputs, overwrite, PNG)
    segmentation = to_ras(read_volume(prediction.path))
    grid = Grid(segmentation.affine, segmentation.shape)
    prepared = prediction.prepared
    shown = {
        name: resample(image.astype(np.float32), prepared.grid, grid, smooth=False)
        for name, image in zip(prepared.modalities, prepared.images, strict=True)
    }
    codes = segmentation.voxels.astype(np.uint8)
    panel = answer_panel(prediction.path.name, shown, codes, prediction.volumes_ml, grid.spacing_mm)
    save_montage(path, [panel], "Segmentation on the patient's own grid", overwrite)
