"""Segment one patient from files, on the grid of the patient's own images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from multiseg.allocator import keep_memory
from multiseg.errors import ModalityError, UsageError
from multiseg.evaluation.adaptation import Adaptation, AdaptOptions, adapted, check_adaptable, lesion_of
from multiseg.evaluation.case_panel import PNG
from multiseg.evaluation.decision import brain_of, decide, majority
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.panels import answer_panel
from multiseg.evaluation.preparation import brain_rule, network_input, recipe_for
from multiseg.files import check_files
from multiseg.labels import LabelSchema
from multiseg.modalities import canonical_modality
from multiseg.models.learnt_scans import NOT_KNOWN, NOT_LEARNT, TRAIN, VAL, how_learnt
from multiseg.models.saved import Model, ModelInfo, load_model
from multiseg.models.two_branch import CONSTANTS, TwoBranch
from multiseg.sequence_reading import read_name
from multiseg.store.cases import CaseFiles, LabelFile, ScanFile
from multiseg.store.findings import Doubt, Severity
from multiseg.store.formats.label_table import rows_of_space, table_files
from multiseg.store.formats.nifti import write_like
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.types import Mask

NIFTI = (".nii.gz", ".nii")
LESION_MASK = "lesion mask"
"""The name of a given lesion mask in messages."""


@dataclass(frozen=True)
class Prediction:
    """A written segmentation and what it was made from.

    Attributes:
        left_out: given sequences that the model, or one that votes, never learnt from.
        doubts: what a person should check.
        inputs: the files that it was made from.
        prepared: the images that the model saw.
        learnt: for each used sequence, how the model used this scan: "train" (trained on it), "val" (chosen by it),
            "" (not at all) or "not known".
        adaptations: how each model was adapted, in words; empty without adaptation.
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
    adaptations: tuple[str, ...] = ()


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
    adapt: bool = False,
    lesion_mask: Path | str | None = None,
    ensemble: Sequence[Path | str] | None = None,
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
        adapt: whether a two_branch model is adapted to this patient first (see `multiseg.evaluation.adaptation`).
        lesion_mask: a file of 0 and 1 that shows the lesion for the adaptation; by default the lesion branch finds it.
        ensemble: further models, which vote with the first one (see `decision.majority`). With `adapt` each model has
            a vote for each constant, adapted to this one alone. None for no vote.

    Raises:
        UsageError: `out` is not a name of a NIfTI file or may not be written (see `check_files`), the model needs a
            brain mask or cannot be adapted, a lesion mask is given without adaptation, or the models of an ensemble
            do not fit together, were trained on data prepared differently, or are only one.
        ModalityError: the model learnt from none of the sequences, or the models of an ensemble from none in common.
        SourceError: a file is missing or damaged, or its position in space does not fit the others.
    """
    keep_memory()
    out = Path(out)
    paths: dict[str, ScanFile] = {name: Path(file) for name, file in images.items()}
    sources = input_files(model, images, brain_mask, lesion_mask, ensemble or ())
    check_files([out], sources, overwrite, NIFTI)
    voters = [model if isinstance(model, Model) else load_model(model, device)]
    voters += [load_model(one, device) for one in ensemble or ()]
    _check_voters(voters, adapt, lesion_mask, ensemble is not None)
    info = voters[0].info
    rows = rows_of_space(info.space)
    check_files(table_files(out, rows), sources, overwrite)
    usable = _usable_for_all([voter.info for voter in voters], tuple(images), reference)
    reference = reference or next(iter(images))
    rule, mask = brain_rule(brain_mask)
    recipe, doubts = _common_recipe([voter.info for voter in voters], rule, reference, headers_disagree)
    needed = {name: path for name, path in paths.items() if name in usable or name == reference}
    labelled: dict[str, LabelFile] = {LESION_MASK: Path(lesion_mask)} if lesion_mask else {}
    files = CaseFiles(out.name, needed, labelled, brain_mask=mask)
    schemas = {name: LabelSchema.parse("1=lesion", "lesion") for name in labelled}
    prepared = prepare_case(files, schemas, recipe, only=usable)
    inputs, present = network_input(
        info, prepared.images, prepared.modalities, usable, prepared.intensity_above_outside
    )
    shown = _Shown(inputs, present, prepared, overlap)
    if ensemble is None:
        labels, adaptation = _segmented(voters[0], shown, CONSTANTS if adapt else ())
        adaptations = [adaptation] if adapt else []
    else:
        labels, adaptations = _voted(voters, shown, adapt)
    write_like(out, labels, prepared.native_header, rows)
    ml = float(np.prod(prepared.native.spacing_mm)) / 1000
    volumes = {
        name: float(np.count_nonzero(labels == code)) * ml for code, name in enumerate(info.space.names, start=1)
    }
    left_out = tuple(name for name in images if name not in usable)
    scans = zip(prepared.modalities, prepared.content, strict=True)
    learnt = {name: _how_any_learnt(voters, digest) for name, digest in scans}
    doubts += prepared.doubts + _learnt_doubts(learnt) + _blind_doubts(voters, present)
    return Prediction(
        out, reference, usable, left_out, volumes, doubts, sources, prepared, learnt, tuple(map(str, adaptations))
    )


@dataclass(frozen=True, eq=False)
class _Shown:
    """A prepared case on the models' channels."""

    inputs: Float[np.ndarray, "modality i j k"]
    present: Bool[np.ndarray, " modality"]
    prepared: PreparedCase
    overlap: float


def _segmented(
    model: Model, shown: _Shown, constants: tuple[float, ...], lesion: Mask | None = None
) -> tuple[UInt8[np.ndarray, "x y z"], Adaptation]:
    """The labels on the native grid; with constants of the model that was adapted to them.

    Args:
        lesion: where it is; None for the given mask, or else what the lesion branch finds.
    """
    adaptation = Adaptation(model)
    if constants:
        lesion = _lesion(model, shown) if lesion is None else lesion
        adaptation = adapted(model, shown.inputs, shown.present, lesion, AdaptOptions(constants))
    prepared, info = shown.prepared, model.info
    probabilities = predict_volume(adaptation.model, shown.inputs, shown.present, info.patch, shown.overlap)
    native = np.stack([resample(volume, prepared.grid, prepared.native, smooth=False) for volume in probabilities])
    brain = brain_of(prepared.images)
    native_brain = resample(brain.astype(np.float32), prepared.grid, prepared.native, smooth=False) >= 0.5
    return decide(native, info.space, native_brain), adaptation


def _voted(voters: Sequence[Model], shown: _Shown, adapt: bool) -> tuple[UInt8[np.ndarray, "x y z"], list[Adaptation]]:
    """The majority of all models, each adapted to every constant by itself if `adapt`."""
    answers, adaptations = [], []
    for model in voters:
        lesion = _lesion(model, shown) if adapt else None
        for constants in [(constant,) for constant in CONSTANTS] if adapt else [()]:
            labels, adaptation = _segmented(model, shown, constants, lesion)
            answers.append(labels)
            adaptations += [adaptation] if adapt else []
    return majority(answers, voters[0].info.space), adaptations


def _lesion(model: Model, shown: _Shown) -> Mask:
    given = shown.prepared.labels.get(LESION_MASK)
    if given is not None:
        return np.asarray(given == 1)
    return lesion_of(model, shown.inputs, shown.present, shown.overlap)


def _check_voters(voters: Sequence[Model], adapt: bool, lesion_mask: Path | str | None, is_ensemble: bool) -> None:
    if lesion_mask and not adapt:
        raise UsageError("a lesion mask is used only by the adaptation: add --adapt on, or leave out --lesion-mask.")
    if is_ensemble and len(voters) == 1 and not adapt:
        raise UsageError("an ensemble of one model has nothing to vote on: name several, or add --adapt on.")
    for model in voters if adapt else ():
        check_adaptable(model)
    first = voters[0].info
    for other in (model.info for model in voters[1:]):
        for name in ("axis", "space", "spacing_mm", "background"):
            if getattr(first, name) != getattr(other, name):
                raise UsageError(
                    f"the models cannot vote together: {name} is {getattr(first, name)} in the first and "
                    f"{getattr(other, name)} in another."
                )


def _common_recipe(
    infos: Sequence[ModelInfo], rule: str, reference: str, headers_disagree: str
) -> tuple[Recipe, tuple[Doubt, ...]]:
    """The one recipe that all models need of a new patient, who is prepared once; see `recipe_for`.

    Raises:
        UsageError: the models need different preparations, or a brain mask.
    """
    (first, _), *others = made = [recipe_for(info, rule, reference, headers_disagree) for info in infos]
    for number, (other, _) in enumerate(others, start=2):
        for setting in fields(Recipe):
            ours, theirs = getattr(first, setting.name), getattr(other, setting.name)
            if ours != theirs:
                hint = " Or give --brain-mask." if setting.name == "brain_mask" else ""
                raise UsageError(
                    f"the models cannot vote together, since they need differently prepared images: {setting.name} is "
                    f"{ours!r} for model 1 and {theirs!r} for model {number}. Leave one out.{hint}"
                )
    return first, tuple(dict.fromkeys(doubt for _, doubts in made for doubt in doubts))


def _how_any_learnt(voters: Sequence[Model], digest: str) -> str:
    """How the models used a scan; of several the use that says least about new patients."""
    uses = [how_learnt(model.learnt, [digest]) for model in voters]
    return next((use for use in (TRAIN, VAL, NOT_KNOWN) if use in uses), NOT_LEARNT)


def _blind_doubts(voters: Sequence[Model], present: Bool[np.ndarray, " modality"]) -> tuple[Doubt, ...]:
    """A doubt for each anatomy branch of a two_branch model that sees nothing; equal ones once."""
    doubts = []
    for model in voters:
        network = model.network
        if not isinstance(network, TwoBranch) or present[list(network.anatomy_channels)].any():
            continue
        names = ", ".join(model.info.axis[channel] for channel in network.anatomy_channels)
        text = f"{names} is missing, from which the model segments tissues: do not use its tissues. Give {names}."
        doubts.append(Doubt(Severity.WARNING, "NO_ANATOMY_SEQUENCE", text))
    return tuple(dict.fromkeys(doubts))


def _usable_for_all(infos: Sequence[ModelInfo], given: Sequence[str], reference: str) -> tuple[str, ...]:
    """The given sequences that every model learnt from.

    Raises:
        ModalityError: see `_usable`; or there is none that all models learnt from.
    """
    by_model = [_usable(info, given, reference) for info in infos]
    usable = tuple(name for name in given if all(name in names for names in by_model))
    if not usable:
        listed = "; ".join(f"model {number}: {', '.join(names)}" for number, names in enumerate(by_model, start=1))
        raise ModalityError(f"the models learnt from none of the given sequences in common ({listed}). Leave one out.")
    return usable


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
    model: Path | str | Model,
    images: Mapping[str, Path | str],
    brain_mask: Path | str | None = None,
    lesion_mask: Path | str | None = None,
    ensemble: Sequence[Path | str] = (),
) -> tuple[Path, ...]:
    """The files that a prediction is made from, which must not be overwritten."""
    files = [Path(path) for path in (*images.values(), *ensemble, *([lesion_mask] if lesion_mask else []))]
    files += [] if isinstance(model, Model) else [Path(model)]
    _, mask = brain_rule(brain_mask)
    return (*files, *([mask] if mask else []))


def save_overlay(path: Path, prediction: Prediction, overwrite: bool = False) -> None:
    """Draw the segmentation, read back from its file, over the images that the model saw, on the patient's own grid.

    The images are where preparation placed them, by their headers or by registration.

    Raises:
        UsageError: the file may not be written, see `check_files`.
    """
    from multiseg.evaluation.montage import save_montage  # slow to import

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
