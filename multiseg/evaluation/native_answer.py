"""The answer of one model, or of several that vote, on the grid of the patient's own reference image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from multiseg.evaluation.adaptation import Adaptation, AdaptOptions, adapted, lesion_of
from multiseg.evaluation.decision import brain_of, decide, majority
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.reliability import expected_dice
from multiseg.evaluation.temperature import at_temperature
from multiseg.evaluation.voting import Voters
from multiseg.models.calibration_record import temperatures_of
from multiseg.models.saved import Model
from multiseg.models.two_branch import CONSTANTS
from multiseg.store.preparation.grids import resample
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.types import Mask

LESION_MASK = "lesion mask"
"""The name of a given lesion mask in messages."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A prepared case on the models' channels."""

    inputs: Float[np.ndarray, "modality i j k"]
    present: Bool[np.ndarray, " modality"]
    prepared: PreparedCase
    overlap: float


@dataclass(frozen=True, eq=False)
class NativeAnswer:
    """The labels on the native grid: 0 background, 1.. the structures of the label space in their order.

    Attributes:
        probabilities: of each structure, calibrated if the model is; of several models their mean. The labels are
            decided from those before the calibration.
        adaptations: how each model was adapted, in words.
        expected_dice: of each structure, see `reliability.expected_dice`.
    """

    labels: UInt8[np.ndarray, "x y z"]
    probabilities: Float[np.ndarray, "label x y z"]
    adaptations: tuple[str, ...] = ()
    expected_dice: tuple[float, ...] = ()


def answer_natively(voters: Voters, shown: Shown) -> NativeAnswer:
    """The answer of the models: of several the majority, each adapted to every constant by itself if they adapt."""
    prepared = shown.prepared
    brain = brain_of(prepared.images).astype(np.float32)
    native_brain = resample(brain, prepared.grid, prepared.native, smooth=False) >= 0.5
    answer = _answer(voters, shown, native_brain)
    expected = tuple(
        expected_dice(answer.labels == code, probability, native_brain)
        for code, probability in enumerate(answer.probabilities, start=1)
    )
    return replace(answer, expected_dice=expected)


def _answer(voters: Voters, shown: Shown, native_brain: Mask) -> NativeAnswer:
    if not voters.is_vote:
        return _answer_of_one(voters.models[0], shown, native_brain, CONSTANTS if voters.adapt else ())
    labels: list[UInt8[np.ndarray, "x y z"]] = []
    adaptations: list[str] = []
    total: Any = np.float32(0)  # a sum, since all volumes at once may need too much memory
    for model in voters.models:
        lesion = _lesion(model, shown) if voters.adapt else None
        for constants in [(constant,) for constant in CONSTANTS] if voters.adapt else [()]:
            answer = _answer_of_one(model, shown, native_brain, constants, lesion)
            labels.append(answer.labels)
            adaptations += answer.adaptations
            total = total + answer.probabilities
    mean = total / np.float32(len(labels))
    return NativeAnswer(majority(labels, voters.space), mean, tuple(adaptations))


def _answer_of_one(
    model: Model, shown: Shown, native_brain: Mask, constants: tuple[float, ...], lesion: Mask | None = None
) -> NativeAnswer:
    """The answer of one model; with constants of the model that was adapted to them.

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
    temperatures = temperatures_of(info.calibration, int(shown.present.sum()))
    return NativeAnswer(
        decide(native, info.space, native_brain),
        at_temperature(native, info.space, temperatures),
        (str(adaptation),) if constants else (),
    )


def _lesion(model: Model, shown: Shown) -> Mask:
    given = shown.prepared.labels.get(LESION_MASK)
    if given is not None:
        return np.asarray(given == 1)
    return lesion_of(model, shown.inputs, shown.present, shown.overlap)
