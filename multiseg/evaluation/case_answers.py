"""What one model, or several together, answer to a case: probabilities or labels, with its mirror image if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.evaluation.decision import decide, majority
from multiseg.evaluation.inference import Images, Slab, slabs
from multiseg.evaluation.temperature import at_temperature
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.calibration_record import UNCALIBRATED, Temperatures, temperatures_of
from multiseg.models.saved import Model
from multiseg.sides import mirrored, unpaired

VOTE, MEAN = "vote", "mean"
ENSEMBLES = (MEAN, VOTE)
"""How several models answer: by the mean of their probabilities, or by the label that most of them give."""


@dataclass(frozen=True)
class AnswerOptions:
    """How models answer.

    Attributes:
        overlap: of the sliding windows, as a share of their size.
        tta: whether the probabilities are the mean of those of the image and of its left-right mirror image.
        memory: the budget of the process in bytes, see `memory_budget`; 0 for none.
        windows_at_once: that go through the network together; 0 takes what is fastest.
    """

    overlap: float = 0.5
    tta: bool = False
    memory: int = 0
    windows_at_once: int = 0


@dataclass(frozen=True, eq=False)
class Shown:
    """A prepared case on the channels of an axis, of which each model gets its own."""

    images: Images
    present: Bool[np.ndarray, " modality"]
    axis: ModalityAxis

    def on(self, axis: ModalityAxis) -> Shown:
        """The same case on the channels of a model, which may be fewer."""
        if axis == self.axis:
            return self
        channels = self.axis.channels(list(axis))
        return Shown(self.images[channels], self.present[channels], axis)


class Mirrored(nn.Module):
    """A network that is shown the mirror image, and whose answer is mirrored back: left structures become right ones.

    The first axis of space runs from left to right (RAS+).

    Raises:
        UsageError: a structure of one side has no label for the other side.
    """

    def __init__(self, network: nn.Module, space: LabelSpace) -> None:
        super().__init__()
        check_mirrored(space)
        self.network = network
        self.order = list(mirrored(space)) if space.num_logits > 1 else [0]

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        logits: Tensor = self.network(images.flip(2), present)
        return logits.flip(2)[:, self.order]


def check_mirrored(space: LabelSpace) -> None:
    """Raises UsageError if the answer to a mirror image cannot be mirrored back."""
    if alone := unpaired(space):
        raise UsageError(
            "a mirror image turns left structures into right ones, but the model does not have the other side of "
            f"{', '.join(alone)}: leave out --tta."
        )


def probabilities_by_slab(model: Model, shown: Shown, options: AnswerOptions) -> Iterator[Slab]:
    """The probabilities of one model, in slabs that follow each other along the first axis."""
    networks: list[nn.Module] = [model, *([Mirrored(model, model.info.space)] if options.tta else [])]
    own = shown.on(model.info.axis)
    walks = [
        slabs(network, own.images, own.present, model.info.patch, options.overlap, options.windows_at_once)
        for network in networks
    ]
    for rows, parts in _side_by_side(walks):
        yield rows, _mean(parts)


def mean_by_slab(models: Sequence[Model], shown: Shown, options: AnswerOptions) -> Iterator[Slab]:
    """The mean of the probabilities of several models, or those of one."""
    for rows, parts in _side_by_side([probabilities_by_slab(model, shown, options) for model in models]):
        yield rows, _mean(parts)


@dataclass(frozen=True, eq=False)
class WholeAnswer:
    """The answer to a whole volume.

    Attributes:
        labels: indices in the models' label space; 0 outside the brain.
        probabilities: of each structure, the mean of the models', before any calibration.
        calibrated: the mean of each model's calibrated ones; the same array if no model is calibrated.
    """

    labels: UInt8[np.ndarray, "i j k"]
    probabilities: Float[np.ndarray, "label i j k"]
    calibrated: Float[np.ndarray, "label i j k"]


def answer_of(
    models: Sequence[Model], rule: str, shown: Shown, options: AnswerOptions, brain: Bool[np.ndarray, "i j k"]
) -> WholeAnswer:
    """The answer of models. Calibrations change no label.

    Args:
        rule: see `labels_of`.
    """
    space = models[0].info.space
    temperatures = [temperatures_for(model, shown) for model in models]
    labels = np.zeros(brain.shape, dtype=np.uint8)
    probabilities = np.empty((len(space.labels), *brain.shape), dtype=np.float32)
    is_calibrated = any(one != UNCALIBRATED for one in temperatures)
    calibrated = np.empty_like(probabilities) if is_calibrated else probabilities
    for rows, parts in _side_by_side([probabilities_by_slab(model, shown, options) for model in models]):
        labels[rows] = _decided(parts, rule, space, brain[rows])
        probabilities[:, rows] = _mean(parts)
        if is_calibrated:
            scaled = [at_temperature(part, space, one) for part, one in zip(parts, temperatures, strict=True)]
            calibrated[:, rows] = _mean(scaled)
    return WholeAnswer(labels, probabilities, calibrated)


def temperatures_for(model: Model, shown: Shown) -> Temperatures:
    """The temperatures of a model for the number of its sequences that it is shown."""
    channels = shown.axis.channels(list(model.info.axis))
    return temperatures_of(model.info.calibration, int(shown.present[channels].sum()))


def labels_of(
    models: Sequence[Model], rule: str, shown: Shown, options: AnswerOptions, brain: Bool[np.ndarray, "i j k"]
) -> UInt8[np.ndarray, "i j k"]:
    """Indices in the models' label space; 0 outside the brain. No volume of probabilities is kept.

    Args:
        rule: `VOTE` decides for each model and takes the majority; otherwise their mean probabilities decide.
    """
    labels = np.zeros(brain.shape, dtype=np.uint8)
    for rows, parts in _side_by_side([probabilities_by_slab(model, shown, options) for model in models]):
        labels[rows] = _decided(parts, rule, models[0].info.space, brain[rows])
    return labels


def _decided(
    parts: Sequence[Float[np.ndarray, "label i j k"]], rule: str, space: LabelSpace, brain: Bool[np.ndarray, "i j k"]
) -> UInt8[np.ndarray, "i j k"]:
    if rule == VOTE:
        return majority([decide(part, space, brain) for part in parts], space)
    return decide(_mean(parts), space, brain)


def _mean(parts: Sequence[Float[np.ndarray, "label i j k"]]) -> Float[np.ndarray, "label i j k"]:
    if len(parts) == 1:
        return parts[0]
    mean: Float[np.ndarray, "label i j k"] = sum(parts[1:], start=parts[0]) / np.float32(len(parts))
    return mean


def _side_by_side(
    walks: Sequence[Iterator[Slab]],
) -> Iterator[tuple[slice, list[Float[np.ndarray, "label i j k"]]]]:
    """The same planes of several walks through one volume, whose slabs may end at different planes."""
    heads = [next(walk, None) for walk in walks]
    while None not in heads:
        slabs_here = [head for head in heads if head is not None]
        start, stop = slabs_here[0][0].start, min(rows.stop for rows, _ in slabs_here)
        num = stop - start
        yield slice(start, stop), [part[:, :num] for _, part in slabs_here]
        heads = [
            (slice(stop, rows.stop), part[:, num:]) if rows.stop > stop else next(walk, None)
            for walk, (rows, part) in zip(walks, slabs_here, strict=True)
        ]
