"""The answer of one model, or of several together, on the grid of the patient's own reference image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from multiseg.evaluation.adaptation import Adaptation, AdaptOptions, adapted, lesion_of
from multiseg.evaluation.case_answers import VOTE, AnswerOptions, Shown, mean_by_slab
from multiseg.evaluation.decision import brain_of, decide, majority
from multiseg.evaluation.inference import whole
from multiseg.evaluation.memory_budget import FLOAT, fitted
from multiseg.evaluation.voting import Voters
from multiseg.models.saved import Model
from multiseg.models.two_branch import CONSTANTS
from multiseg.store.preparation.grids import resample
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.types import Mask

LESION_MASK = "lesion mask"
"""The name of a given lesion mask in messages."""
NATIVE_BYTES = 12
"""For each native voxel: what interpolation, the brain and the written file need beside the probabilities."""


@dataclass(frozen=True, eq=False)
class NativeAnswer:
    """The labels on the native grid: 0 background, 1.. the structures of the label space in their order.

    Attributes:
        probabilities: of each structure; of several models their mean.
        adaptations: how each model was adapted, in words.
    """

    labels: UInt8[np.ndarray, "x y z"]
    probabilities: Float[np.ndarray, "label x y z"]
    adaptations: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """A prepared case, what the models are shown of it, and how they answer."""

    prepared: PreparedCase
    shown: Shown
    options: AnswerOptions

    @cached_property
    def native_brain(self) -> Mask:
        """The brain on the native grid."""
        prepared = self.prepared
        brain = brain_of(prepared.images).astype(np.float32)
        found: Mask = resample(brain, prepared.grid, prepared.native, smooth=False) >= 0.5
        return found

    def probabilities(self, models: Sequence[Model]) -> Float[np.ndarray, "label x y z"]:
        """The mean of the models' probabilities on the native grid."""
        prepared = self.prepared
        on_grid = whole(mean_by_slab(models, self.shown, self._fitted(models)), prepared.grid.shape)
        native = np.empty((len(on_grid), *prepared.native.shape), dtype=np.float32)
        for index, volume in enumerate(on_grid):
            native[index] = resample(volume, prepared.grid, prepared.native, smooth=False)
        return native

    def _fitted(self, models: Sequence[Model]) -> AnswerOptions:
        """The options with as many windows at once as fit beside the probabilities on both grids."""
        num, voxels = len(models[0].info.space.labels), math.prod(self.prepared.native.shape)
        other = FLOAT * num * (math.prod(self.prepared.grid.shape) + voxels) + NATIVE_BYTES * voxels
        return fitted(models, self.shown, self.options, other)


def answer_natively(voters: Voters, question: Question) -> NativeAnswer:
    """The answer of the models: in an ensemble each is adapted to every constant by itself if they adapt."""
    adaptations = [one for model in voters.models for one in _adaptations(model, voters, question)]
    models = [one.model for one in adaptations]
    texts = tuple(str(one) for one in adaptations) if voters.adapt else ()
    if voters.rule != VOTE:
        probabilities = question.probabilities(models)
        return NativeAnswer(decide(probabilities, voters.space, question.native_brain), probabilities, texts)
    labels: list[UInt8[np.ndarray, "x y z"]] = []
    total: Any = np.float32(0)  # a sum, since all volumes at once may need too much memory
    for model in models:
        probabilities = question.probabilities([model])
        labels.append(decide(probabilities, voters.space, question.native_brain))
        total = total + probabilities
    return NativeAnswer(majority(labels, voters.space), total / np.float32(len(labels)), texts)


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
