"""Segment one patient, from files or from a store, on the grid of the patient's own images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from multiseg.allocator import keep_memory
from multiseg.evaluation.brain_finding import brain_finder
from multiseg.evaluation.case_answers import Shown
from multiseg.evaluation.dicom_answer import seg_target, write_seg
from multiseg.evaluation.memory_budget import check_prepared, peak_bytes
from multiseg.evaluation.native_answer import LESION_MASK, NativeAnswer, Question, answer_natively
from multiseg.evaluation.prediction_inputs import PredictOptions, check_sequences, input_files
from multiseg.evaluation.preparation import MODEL_RULE, brain_rule, network_input, recipe_for
from multiseg.evaluation.voting import (
    Voters,
    blind_doubts,
    common_recipe,
    contrast_doubts,
    how_any_learnt,
    learnt_doubts,
    load_voters,
    look_doubts,
    usable_for_all,
)
from multiseg.files import check_files
from multiseg.labels import LabelSchema, LabelSpace
from multiseg.models.saved import Model
from multiseg.store.cases import CaseFiles, LabelFile
from multiseg.store.findings import Doubt, Severity
from multiseg.store.formats.label_table import rows_of_space, table_files
from multiseg.store.native import write_on_native
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.reader import Case, Database
from multiseg.store.sources.dicom_folder import scan_at
from multiseg.store.stored_case import as_prepared
from multiseg.types import OnStep, no_progress

NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Outputs:
    """The files of one prediction.

    Attributes:
        segmentation: 0 background, 1.. the model's labels in their order.
        probabilities: the file of each structure's probability, by its name; empty if none are written.
        tables: whether the tables that say what the labels mean are written beside the segmentation.
        dicom_seg: the file of the DICOM SEG; None if none is written.
    """

    segmentation: Path
    probabilities: Mapping[str, Path] = field(default_factory=dict)
    tables: bool = True
    dicom_seg: Path | None = None

    def files(self, space: LabelSpace) -> tuple[Path, ...]:
        """All of them."""
        tables = table_files(self.segmentation, rows_of_space(space)) if self.tables else {}
        seg = () if self.dicom_seg is None else (self.dicom_seg,)
        return (self.segmentation, *tables, *self.probabilities.values(), *seg)


def plain_outputs(segmentation: Path, space: LabelSpace, options: PredictOptions) -> Outputs:
    """A segmentation, and beside it NAME_prob-STRUCTURE.nii.gz and NAME.dcm if they are wanted."""
    stem = segmentation.name.removesuffix(".gz").removesuffix(".nii")
    names = [label.name for label in space.labels] if options.probabilities else []
    spelt = {name: "".join(letter if letter.isalnum() else "-" for letter in name) for name in names}
    maps = {name: segmentation.with_name(f"{stem}_prob-{spelt[name]}.nii.gz") for name in names}
    return Outputs(segmentation, maps, dicom_seg=segmentation.with_name(f"{stem}.dcm") if options.dicom_seg else None)


@dataclass(frozen=True)
class Prediction:
    """A written segmentation and what it was made from.

    Attributes:
        left_out: given sequences that the model, or one of an ensemble, never learnt from.
        doubts: what a person should check.
        inputs: the files that it was made from.
        prepared: the images that the model saw.
        answer: the labels and their probabilities on the patient's grid.
        learnt: for each used sequence, how the model used this scan: "train" (trained on it), "val" (chosen by it),
            "" (not at all) or "not known".
        adaptations: how each model was adapted, in words; empty without adaptation.
        dicom_seg: the file of the DICOM SEG; None if none was written.
        expected_dice: by structure, see `reliability.expected_dice`.
    """

    path: Path
    reference: str
    used: tuple[str, ...]
    left_out: tuple[str, ...]
    volumes_ml: Mapping[str, float]
    doubts: tuple[Doubt, ...]
    inputs: tuple[Path, ...] = field(repr=False)
    prepared: PreparedCase = field(repr=False)
    answer: NativeAnswer = field(repr=False)
    learnt: Mapping[str, str] = field(default_factory=dict)
    adaptations: tuple[str, ...] = ()
    dicom_seg: Path | None = None
    expected_dice: Mapping[str, float] = field(default_factory=dict)


def predict(
    model: Path | str | Model,
    images: Mapping[str, Path | str],
    out: Path | str,
    options: PredictOptions | None = None,
    overwrite: bool = False,
    on_step: OnStep = no_progress,
) -> Prediction:
    """Segment one patient from any subset of sequences, in any orientation and on any grids.

    The segmentation has the grid and header of the reference image: 0 background, 1.. the model's labels in their
    order, uint8. Outside the brain it is 0; see `multiseg.evaluation.decision`. The names of the labels are in the
    file and in the tables next to it (see `label_table`).

    Args:
        model: a model file, a run folder or a loaded model.
        images: files by sequence, or folders of one DICOM series each; the first is the reference unless the options
            name another. Of a reference that the model never learnt from, only the grid is used.
        overwrite: whether files of an earlier prediction may be replaced; an input never is.
        on_step: called after each part of the volume, for every model that answers by itself.

    Raises:
        UsageError: `out` is not a name of a NIfTI file or may not be written (see `check_files`), the model needs a
            brain mask or cannot be adapted, or the models do not fit together, were trained on data prepared
            differently, or are only one.
        ModalityError: the model learnt from none of the sequences, or the models of an ensemble from none in common; or
            a name is no sequence, see `check_sequences`.
        SourceError: a file is missing or damaged, or its position in space does not fit the others.
    """
    options = options or PredictOptions()
    if not options.memory:  # what is kept does not fit into a budget
        keep_memory()
    out = Path(out)
    paths = {name: scan_at(Path(file)) for name, file in images.items()}
    sources = input_files(model, images, options)
    check_files([out], sources, overwrite, NIFTI)
    voters = load_voters(model, options)
    check_sequences(images, voters.sequences, options.reference)
    outputs = plain_outputs(out, voters.space, options)
    _, *beside = outputs.files(voters.space)
    check_files(beside, sources, overwrite)
    labelled: dict[str, LabelFile] = {LESION_MASK: Path(options.lesion_mask)} if options.lesion_mask else {}
    _, mask = brain_rule(options.brain_mask)
    files = CaseFiles(out.name, paths, labelled, brain_mask=mask)
    return replace(predict_case(voters, files, outputs, options, on_step), inputs=sources)


def predict_case(
    voters: Voters, files: CaseFiles, outputs: Outputs, options: PredictOptions, on_step: OnStep = no_progress
) -> Prediction:
    """Segment one case from its files and write it, without asking whether the outputs are there.

    If the case has a brain mask, that is its brain.

    Raises:
        UsageError, ModalityError, SourceError: as `predict`.
    """
    usable = usable_for_all(voters.infos, tuple(files.images), options.reference)
    voters.check_sees(usable)
    reference = options.reference or next(iter(files.images))
    target = seg_target(files.images[reference], options.dicom_seg) if options.dicom_seg else None
    rule = "file" if files.brain_mask else brain_rule(options.brain_mask)[0]
    find_brain = brain_finder(voters.brain, options.overlap) if rule == MODEL_RULE else None
    rule = "file" if find_brain else rule
    finds_brain = voters.brain is not None
    recipe, doubts = common_recipe(voters.infos, rule, reference, options.headers_disagree, finds_brain)
    recipe = replace(recipe, register=options.register or recipe.register)
    needed = {name: path for name, path in files.images.items() if name in usable or name == reference}
    schemas = {name: LabelSchema.parse("1=lesion", "lesion") for name in files.labels}
    peak = peak_bytes()
    prepared = prepare_case(replace(files, images=needed), schemas, recipe, usable, find_brain)
    check_prepared(peak, options.answer.memory)
    prediction = _predict_prepared(voters, prepared, usable, outputs, options, on_step)
    if target and outputs.dicom_seg:
        write_seg(outputs.dicom_seg, prediction.answer.labels, prepared.native, target, voters)
    left_out = tuple(name for name in files.images if name not in usable)
    doubts += target.doubts if target else ()
    return replace(
        prediction, reference=reference, left_out=left_out, inputs=files.paths, dicom_seg=outputs.dicom_seg,
        doubts=doubts + prediction.doubts + _skull_doubts(prediction, finds_brain and find_brain is None),
    )  # fmt: skip


def _skull_doubts(prediction: Prediction, could_find: bool) -> tuple[Doubt, ...]:
    """A hint at the model's own brain network if the brain seems to include the skull."""
    if not could_find or not {doubt.code for doubt in prediction.doubts} & {"NO_BACKGROUND", "BRAIN_SIZE"}:
        return ()
    text = "the model carries a network that finds the brain in a scan with its skull: --brain-mask model."
    return (Doubt(Severity.NOTE, "BRAIN_NETWORK", text),)


def predict_stored(
    voters: Voters, database: Database, case: Case, outputs: Outputs, options: PredictOptions
) -> Prediction:
    """Segment one case of a store and write it on the native grid that it came from.

    Raises:
        ModalityError: the models learnt from none of its sequences.
        StoreError: its files in the store are damaged.
    """
    usable = usable_for_all(voters.infos, case.modalities, "")
    voters.check_sees(usable)
    prediction = _predict_prepared(voters, as_prepared(database, case, usable), usable, outputs, options)
    left_out = tuple(name for name in case.modalities if name not in usable)
    return replace(prediction, left_out=left_out, doubts=_recipe_doubts(voters, database) + prediction.doubts)


def _recipe_doubts(voters: Voters, database: Database) -> tuple[Doubt, ...]:
    """A doubt if a store's images were prepared in another way than those the models learnt from."""
    doubts = []
    ours = database.recipe
    for info in voters.infos:
        theirs, _ = recipe_for(info, "nonzero", "", "refuse")
        names = ("normalise", "register", "n4")
        if other := [name for name in names if getattr(ours, name) != getattr(theirs, name)]:
            text = "; ".join(f"{name} is {getattr(ours, name)!r}, not {getattr(theirs, name)!r}" for name in other)
            message = f"the store was not prepared as the model's training data were ({text}). Predict from files."
            doubts.append(Doubt(Severity.WARNING, "OTHER_RECIPE", message))
    return tuple(dict.fromkeys(doubts))


def _predict_prepared(
    voters: Voters,
    prepared: PreparedCase,
    usable: tuple[str, ...],
    outputs: Outputs,
    options: PredictOptions,
    on_step: OnStep = no_progress,
) -> Prediction:
    """Segment a prepared case and write it."""
    images, present = network_input(
        voters.info, prepared.images, prepared.modalities, usable, prepared.intensity_above_outside
    )
    shown = Shown(images, present, voters.info.axis)
    answer = answer_natively(voters, Question(prepared, shown, options.answer, on_step))
    native, header = prepared.native, prepared.native_header
    for index, path in enumerate(outputs.probabilities.values()):
        write_on_native(path, answer.probabilities[index].astype(np.float32), native, header)
    write_on_native(outputs.segmentation, answer.labels, native, header, rows_of_space(voters.space), outputs.tables)
    ml = float(np.prod(native.spacing_mm)) / 1000
    names = enumerate(voters.space.names, start=1)
    scans = zip(prepared.modalities, prepared.content, strict=True)
    learnt = {name: how_any_learnt(voters.models, digest) for name, digest in scans if name in usable}
    expected = dict(zip(voters.space.names, answer.expected_dice, strict=True))
    doubts = learnt_doubts(learnt) + blind_doubts(voters, shown) + look_doubts(voters, expected)
    doubts += contrast_doubts(voters.models, prepared)
    return Prediction(
        path=outputs.segmentation,
        reference="",
        used=usable,
        left_out=(),
        volumes_ml={name: float(np.count_nonzero(answer.labels == code)) * ml for code, name in names},
        doubts=prepared.doubts + doubts,
        inputs=(),
        prepared=prepared,
        answer=answer,
        learnt=learnt,
        adaptations=answer.adaptations,
        expected_dice=expected,
    )
