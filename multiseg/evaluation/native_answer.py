"""The answer of one model, or of several together, on the grid of the patient's own reference image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from multiseg.evaluation.adaptation import Adaptation, AdaptOptions, adapted, lesion_of
from multiseg.evaluation.case_answers import VOTE, AnswerOptions, Shown, mean_by_slab, temperatures_for
from multiseg.evaluation.decision import brain_of, decide, majority
from multiseg.evaluation.inference import whole
from multiseg.evaluation.memory_budget import FLOAT, fitted
from multiseg.evaluation.reliability import expected_dice
from multiseg.evaluation.temperature import at_temperature
from multiseg.evaluation.voting import Voters
from multiseg.models.saved import Model
from multiseg.models.two_branch import CONSTANTS
from multiseg.store.preparation.grids import resample
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.types import Mask, OnStep, no_progress

LESION_MASK = "lesion mask"
"""The name of a given lesion mask in messages."""
NATIVE_BYTES = 18
"""For each native voxel: what interpolation, the brain, the expected Dice and the written file need further."""

Labels: TypeAlias = UInt8[np.ndarray, "x y z"]
Probabilities: TypeAlias = Float[np.ndarray, "label x y z"]


@dataclass(frozen=True, eq=False)
class NativeAnswer:
    """The labels on the native grid: 0 background, 1.. the structures of the label space in their order.

    Attributes:
        probabilities: of each structure, calibrated if the model is; of several models their mean. The labels are
            decided from those before the calibration.
        adaptations: how each model was adapted, in words.
        expected_dice: of each structure, see `reliability.expected_dice`.
    """

    labels: Labels
    probabilities: Probabilities
    adaptations: tuple[str, ...] = ()
    expected_dice: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """A prepared case, what the models are shown of it, and how they answer."""

    prepared: PreparedCase
    shown: Shown
    options: AnswerOptions
    on_step: OnStep = no_progress

    @cached_property
    def native_brain(self) -> Mask:
        """The brain on the native grid."""
        prepared = self.prepared
        brain = brain_of(prepared.images).astype(np.float32)
        found: Mask = resample(brain, prepared.grid, prepared.native, smooth=False) >= 0.5
        return found

    def probabilities(self, models: Sequence[Model], volumes: int) -> Float[np.ndarray, "label x y z"]:
        """The mean of the models' probabilities on the native grid.

        Args:
            volumes: how many volumes of probabilities the caller has at once, this one included.
        """
        prepared = self.prepared
        slabs = mean_by_slab(models, self.shown, self._fitted(models, volumes))
        on_grid = whole(slabs, prepared.grid.shape, self.on_step)
        native = np.empty((len(on_grid), *prepared.native.shape), dtype=np.float32)
        for index, volume in enumerate(on_grid):
            native[index] = resample(volume, prepared.grid, prepared.native, smooth=False)
        return native

    def calibrated(self, probabilities: Probabilities, model: Model) -> Probabilities:
        """The probabilities of a model at its temperatures."""
        return at_temperature(probabilities, model.info.space, temperatures_for(model, self.shown))

    def _fitted(self, models: Sequence[Model], volumes: int) -> AnswerOptions:
        """The options with as many windows at once as fit beside the probabilities on both grids."""
        num, voxels = len(models[0].info.space.labels), math.prod(self.prepared.native.shape)
        other = FLOAT * num * (math.prod(self.prepared.grid.shape) + volumes * voxels) + NATIVE_BYTES * voxels
        return fitted(models, self.shown, self.options, other)


def answer_natively(voters: Voters, question: Question) -> NativeAnswer:
    """The answer of the models: in an ensemble each is adapted to every constant by itself if they adapt."""
    adaptations = [one for model in voters.models for one in _adaptations(model, voters, question)]
    models = voters.answering([one.model for one in adaptations])
    # Models are only answered together, which takes less memory, where none needs its own probabilities.
    is_together = len(models) == 1 or (voters.rule != VOTE and not voters.is_calibrated)
    labels, probabilities = (
        _together(voters, models, question) if is_together else _one_by_one(voters, models, question)
    )
    expected = tuple(
        expected_dice(labels == code, probability, question.native_brain)
        for code, probability in enumerate(probabilities, start=1)
    )
    texts = tuple(str(one) for one in adaptations) if voters.adapt else ()
    return NativeAnswer(labels, probabilities, texts, expected)


def _together(voters: Voters, models: Sequence[Model], question: Question) -> tuple[Labels, Probabilities]:
    """The labels by the mean of the models' probabilities, and these; of one model the calibrated ones."""
    mean = question.probabilities(models, 2 if voters.is_calibrated else 1)
    labels = decide(mean, voters.space, question.native_brain)
    return labels, question.calibrated(mean, models[0]) if len(models) == 1 else mean


def _one_by_one(voters: Voters, models: Sequence[Model], question: Question) -> tuple[Labels, Probabilities]:
    """The labels by vote or by the mean of the probabilities, and the mean of each model's calibrated ones."""
    votes: list[Labels] = []
    total: Any = np.float32(0)  # a sum, since all volumes at once may need too much memory
    shown: Any = np.float32(0)
    for model in models:
        raw = question.probabilities([model], 5)  # and those sums, the calibrated one, and what the votes need
        if voters.rule == VOTE:
            votes.append(decide(raw, voters.space, question.native_brain))
        else:
            total = total + raw
        shown = shown + question.calibrated(raw, model)
    num = np.float32(len(models))
    labels = majority(votes, voters.space) if votes else decide(total / num, voters.space, question.native_brain)
    return labels, shown / num


def _adaptations(model: Model, voters: Voters, question: Question) -> Iterator[Adaptation]:
    """The model as it is; or adapted to all constants, and in an ensemble to each by itself."""
    if not voters.adapt:
        yield Adaptation(model)
        return
    shown = question.shown.on(model.info.axis)
    given = question.prepared.labels.get(LESION_MASK)
    if given is not None:
        lesion = np.asarray(given == 1)
    else:
        lesion = lesion_of(model, shown.images, shown.present, question.options.overlap)
    for constants in [(constant,) for constant in CONSTANTS] if voters.rule else [CONSTANTS]:
        yield adapted(model, shown.images, shown.present, lesion, AdaptOptions(constants))
