"""The decision rule from probabilities to labels; it fits the loss that the network was trained with.

Let p_0 be the probability of background and p_l that of structure l. A case teaches only the structures A that it is
annotated for: training compares p_l (l in A) with

    p'_0 = 1 - sum of p_l over A,

the probability of all else together (`multiseg.models.losses.marginal`). So p_lesion is learnt against everything that
is not lesion: if six tissues share a voxel, none of them has to reach p_lesion for "no lesion" to be more likely. An
argmax over all classes would choose a lesion of 0.3 over six tissues of 0.1 each.

The rule:

1. Outside the brain, where every given sequence is exactly 0, a voxel is background.
2. Let P be the sum of p_l over the lesion structures. "No lesion" then has probability 1 - P, which is p'_0 for a case
   that is annotated for all lesions. A voxel is the most likely lesion l if p_l >= 1 - P. So P >= 1/2 is necessary, and
   sufficient for a single structure; if all structures are lesions, this is the argmax over all classes.
3. Any other voxel is tissue or background. Given no lesion, their probabilities are p_t / (1 - P) and p_0 / (1 - P):
   it is the most likely tissue if its p_t >= p_0, and otherwise background.

Lesions come before tissues, as in a target. A single structure wins from 0.5 on. A tie goes to the first structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from multiseg.labels import KINDS, LabelSpace

ROWS_AT_ONCE = 8
"""Planes along the first axis that are decided together."""


def decide(
    probabilities: Float[np.ndarray, "label i j k"], space: LabelSpace, brain: Bool[np.ndarray, "i j k"]
) -> UInt8[np.ndarray, "i j k"]:
    """The index in the label space of each voxel, 0 for background (see the module).

    Args:
        probabilities: of every structure of the space, without background.
        brain: False where the answer is background, see `brain_of`.
    """
    labels = np.zeros(brain.shape, dtype=np.uint8)
    for start in range(0, len(brain), ROWS_AT_ONCE):  # copies of all planes at once would take much memory
        rows = slice(start, start + ROWS_AT_ONCE)
        labels[rows] = _decided(probabilities[:, rows], space, brain[rows])
    return labels


def _decided(
    probabilities: Float[np.ndarray, "label i j k"], space: LabelSpace, brain: Bool[np.ndarray, "i j k"]
) -> UInt8[np.ndarray, "i j k"]:
    is_lesion = np.array([label.kind == "lesion" for label in space.labels])
    index = np.arange(1, len(space.labels) + 1, dtype=np.uint8)
    labels = np.zeros(brain.shape, dtype=np.uint8)
    if not is_lesion.all():
        tissues = probabilities[~is_lesion]
        wins = tissues.max(axis=0) >= 1 - probabilities.sum(axis=0)
        labels[wins] = index[~is_lesion][tissues.argmax(axis=0)[wins]]
    if is_lesion.any():
        lesions = probabilities[is_lesion]
        wins = lesions.max(axis=0) >= 1 - lesions.sum(axis=0)
        labels[wins] = index[is_lesion][lesions.argmax(axis=0)[wins]]
    labels[~brain] = 0
    return labels


def majority(answers: Sequence[UInt8[np.ndarray, "i j k"]], space: LabelSpace) -> UInt8[np.ndarray, "i j k"]:
    """The label that most answers give each voxel. In a tie lesions come before tissues, and these before background;
    among lesions, and among tissues, the first of the space."""
    lesions, tissues = (
        [index for index, label in enumerate(space.labels, start=1) if label.kind == kind] for kind in KINDS
    )
    order = np.array([*lesions, *tissues, 0], dtype=np.uint8)
    votes = np.stack([sum((answer == label).astype(np.uint16) for answer in answers) for label in order])
    winners: UInt8[np.ndarray, "i j k"] = order[votes.argmax(axis=0)]
    return winners


def brain_of(images: Iterable[Float[np.ndarray, "i j k"]]) -> Bool[np.ndarray, "i j k"]:
    """Where any sequence is not exactly 0, with holes filled, since a value in the brain may be 0 by chance.

    Args:
        images: one or more prepared sequences, which are 0 outside the brain.
    """
    brain: Bool[np.ndarray, "i j k"] = reduce(np.logical_or, (image != 0 for image in images))  # a volume at a time
    if brain.any():
        (box,) = ndimage.find_objects(brain.view(np.uint8))  # no hole is outside this box
        brain[box] = _filled(brain[box])
    return brain


def _filled(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """The mask with its holes: voxels that are not connected to the outside through faces."""
    # The padding connects all that is outside. ndimage.binary_fill_holes is slower.
    empty, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    filled: Bool[np.ndarray, "i j k"] = empty[1:-1, 1:-1, 1:-1] != empty[0, 0, 0]
    return filled
