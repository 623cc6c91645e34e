"""What models answer to a case of a store, from every chosen subset of its sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from multiseg.evaluation.adaptation import ADAPT_TO, TRUE_LESION, adapted, lesion_of, shrunk
from multiseg.evaluation.case_answers import AnswerOptions, Shown, WholeAnswer, answer_of, labels_of
from multiseg.evaluation.comparison import Truth, truth_of
from multiseg.evaluation.decision import brain_of
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.memory_budget import FLOAT, check_further, fitted
from multiseg.evaluation.metrics import joint_box, surface_of
from multiseg.evaluation.preparation import network_input
from multiseg.evaluation.subsets import chosen_subsets
from multiseg.evaluation.voting import Voters
from multiseg.evaluation.zones import Zones, zones_of
from multiseg.labels import IGNORE, LabelSpace
from multiseg.models.saved import Model
from multiseg.store.reader import Case, Store
from multiseg.types import Mask

METRIC_BYTES = 20
"""For each voxel of a case: what its labels, the masks of one structure and its confidence need beside the
probabilities, when the windows are done."""
MASK_BYTES = 5
"""For each voxel of a case: the masks of one structure, which are there while its surfaces are compared."""
SURFACE_BYTES = 24
"""For each voxel of the box around a structure: what the distances between surfaces, and the lesions, need."""
SURFACE_VOXEL_BYTES = 100
"""For each voxel of a surface, in both masks, on top of its box: speckled masks are mostly surface."""


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """A case as stored (`shown`), on the model's axis and in its label space.

    Attributes:
        lesion: the annotated one, if a model is adapted to it.
    """

    case: Case
    usable: tuple[str, ...]
    shown: dict[str, Float[np.ndarray, "i j k"]]
    images: Float[np.ndarray, "modality i j k"]
    truth: Truth
    zones: Zones | None
    lesion: Mask | None = None


def load_case(model: Voters, store: Store, case: Case, options: EvaluateOptions) -> LoadedCase:
    """Read a case for a model."""
    info, database = model.info, store[case.database]
    stored, codes = database.whole(case)
    # In the model's order, so that a subset has the same name in every store.
    usable = tuple(name for name in info.axis if name in info.usable(case.modalities))
    images, _ = network_input(info, stored, database.modalities, usable, case.intensity)
    # Where nothing was shifted, they are the same numbers, and `stored` can leave.
    source, order = (stored, database.modalities) if info.background == "shifted" else (images, info.axis.names)
    shown = {name: source[order.index(name)] for name in usable}
    truth = truth_of(database, case, codes, info.space, options.lesion_assumed)
    zones = zones_of(database, case, codes, info.space) if options.zones else None
    lesion = database.label_view(case, LabelSpace()).target(codes) == 1 if options.adapt_to == TRUE_LESION else None
    return LoadedCase(case, usable, shown, images, truth, zones, lesion)


@dataclass(frozen=True, eq=False)
class CaseAnswer:
    """The answer from a subset of a case's sequences.

    Attributes:
        probabilities, calibrated: of each structure, before and after the calibration.
        brain: of these sequences.
        predicted: index in the label space, with what is assumed.
    """

    subset: tuple[str, ...]
    probabilities: Float[np.ndarray, "label i j k"]
    calibrated: Float[np.ndarray, "label i j k"]
    brain: Bool[np.ndarray, "i j k"]
    predicted: UInt8[np.ndarray, "i j k"]
    truth: Truth


def answers(model: Voters, loaded: LoadedCase, options: EvaluateOptions) -> Iterator[CaseAnswer]:
    """The answers to a case from those chosen subsets of its sequences of which the models see something.

    Raises:
        UsageError: one does not fit into the budget of memory, or what is measured of it would not.
    """
    for subset in filter(model.sees, chosen_subsets(options.subsets, loaded.usable)):
        yield _measurable(answer_to(model, loaded, subset, options), options)


def _measurable(answer: CaseAnswer, options: EvaluateOptions) -> CaseAnswer:
    """The answer; raises UsageError if comparing its surfaces does not fit into the budget of memory."""
    if memory := options.answer.memory:
        surfaces = surface_bytes(answer.predicted, answer.truth, options.scoring.rule.dilation + 1)
        check_further(memory, "the surfaces", MASK_BYTES * answer.brain.size + surfaces)
    return answer


def surface_bytes(predicted: UInt8[np.ndarray, "i j k"], truth: Truth, margin: int) -> int:
    """What comparing the surfaces and the lesions of the largest structure takes.

    Args:
        margin: of the box around a structure, in voxels.
    """
    most, looked_at = 0, truth.target != IGNORE
    for code in (1 + np.flatnonzero(truth.annotated)).tolist():
        masks = ((predicted == code) & looked_at, truth.target == code)
        if (marked := masks[0] | masks[1]).any():
            box = joint_box(marked, margin)
            num = sum(int(np.count_nonzero(surface_of(mask[box]))) for mask in masks)
            most = max(most, SURFACE_BYTES * marked[box].size + SURFACE_VOXEL_BYTES * num)
    return most


def answer_to(model: Voters, loaded: LoadedCase, subset: tuple[str, ...], options: EvaluateOptions) -> CaseAnswer:
    """The answer to a case from one subset of its sequences.

    Raises:
        UsageError: it does not fit into the budget of memory.
    """
    present, brain = np.isin(model.info.axis.names, subset), brain_of(loaded.shown[name] for name in subset)
    models = model.models
    if options.adapt:
        (one,) = models
        models = (_adapted(one, loaded, present, options),)
    models = model.answering(models)
    shown = Shown(loaded.images, present, model.info.axis)
    probabilities = FLOAT * len(model.space.labels) * (2 if model.is_calibrated else 1) * brain.size
    later = probabilities + METRIC_BYTES * brain.size
    fitting = fitted(models, shown, options.answer, probabilities + brain.size, later)
    found: WholeAnswer = answer_of(models, model.rule, shown, fitting, brain)
    predicted = loaded.truth.completed(found.labels)
    return CaseAnswer(subset, found.probabilities, found.calibrated, brain, predicted, loaded.truth)


def _adapted(
    model: Model, loaded: LoadedCase, present: Bool[np.ndarray, " modality"], options: EvaluateOptions
) -> Model:
    """The model, adapted to the lesion that the options choose."""
    lesion = loaded.lesion
    if lesion is None:
        found = lesion_of(model, loaded.images, present, options.overlap)
        lesion = shrunk(found, ADAPT_TO[options.adapt_to], loaded.case.grid.spacing_mm)
    return adapted(model, loaded.images, present, lesion).model


def answered(
    model: Model, store: Store, case: Case, options: EvaluateOptions
) -> tuple[dict[str, Float[np.ndarray, "i j k"]], Truth, UInt8[np.ndarray, "i j k"]]:
    """A case's sequences that the model knows, its truth in the label space of what answers, and the answer."""
    one = Voters((model,), branch=options.branch)
    loaded = load_case(one, store, case, options)
    return loaded.shown, loaded.truth, answer_to(one, loaded, loaded.usable, options).predicted


def segment(
    model: Model,
    images: Float[np.ndarray, "modality i j k"],
    subset: Sequence[str],
    overlap: float,
    brain: Bool[np.ndarray, "i j k"],
) -> UInt8[np.ndarray, "i j k"]:
    """Indices in the model's label space, from the given subset of the sequences; 0 outside their brain."""
    shown = Shown(images, np.isin(model.info.axis.names, subset), model.info.axis)
    return labels_of([model], "", shown, AnswerOptions(overlap), brain)
