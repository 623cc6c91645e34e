"""What a voxel is, from the probabilities of all structures: one rule, which fits the loss that they come from.

With p_0 the probability of background and p_l that of structure l, training knows of a case only what its annotations
looked for. Where they looked for the structures A, it holds p_l (l in A) against

    p'_0 = 1 - sum of p_l over A,

all else together (`multiseg.models.losses.marginal`). So p_lesion is learnt against everything that is not lesion,
whatever that is made of: where six tissues share it, none of them has to reach p_lesion for "no lesion" to be the
likelier answer. An argmax over all classes would give the voxel to the lesion at 0.3 against six times 0.1.

The rule asks the questions that the annotations answer, one after the other:

1. Outside the brain, where every sequence that is shown is exactly 0, a voxel is background.
2. With P = sum of p_l over the lesion structures, all that is no lesion has 1 - P, which is p'_0 where a case was
   searched for all of them. A voxel is the likeliest lesion l where p_l >= 1 - P. So it takes P >= 1/2, and for a
   single structure just that; where all structures are lesions it is the argmax over all classes.
3. Any other voxel is tissue or nothing. Given that it is no lesion, their probabilities are p_t / (1 - P) and
   p_0 / (1 - P): it is the likeliest of the tissues where one is as likely as p_0, and otherwise background.

Lesions come before tissues as they do in a target, where they lie over tissue. A single structure wins from 0.5 on. A
tie between structures goes to the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from multiseg.labels import LabelSpace


def decide(
    probabilities: Float[np.ndarray, "label i j k"], space: LabelSpace, brain: Bool[np.ndarray, "i j k"]
) -> UInt8[np.ndarray, "i j k"]:
    """The index in the label space of each voxel, 0 for background (see the module).

    Args:
        probabilities: of every structure of the space, not of background.
        brain: where an answer can be anything else than background, see `brain_of`.
    """
    is_lesion = np.array([label.kind == "lesion" for label in space.labels])
    index = np.arange(1, len(space.labels) + 1, dtype=np.uint8)
    answer = np.zeros(brain.shape, dtype=np.uint8)
    if not is_lesion.all():
        tissues = probabilities[~is_lesion]
        wins = tissues.max(axis=0) >= 1 - probabilities.sum(axis=0)
        answer[wins] = index[~is_lesion][tissues.argmax(axis=0)[wins]]
    if is_lesion.any():
        lesions = probabilities[is_lesion]
        wins = lesions.max(axis=0) >= 1 - lesions.sum(axis=0)
        answer[wins] = index[is_lesion][lesions.argmax(axis=0)[wins]]
    answer[~brain] = 0
    return answer


def brain_of(images: Iterable[Float[np.ndarray, "i j k"]]) -> Bool[np.ndarray, "i j k"]:
    """Where any of the sequences that a model is shown is not exactly 0, and what such voxels enclose.

    A value inside the brain may be 0 by chance. So a voxel that is 0 counts as brain, too, where the brain lies all
    around it.

    Args:
        images: the sequences, one or more, as they are prepared: 0 outside the brain.
    """
    brain: Bool[np.ndarray, "i j k"] = np.logical_or.reduce([image != 0 for image in images])
    if brain.any():
        (box,) = ndimage.find_objects(brain.view(np.uint8))  # no hole lies outside it
        brain[box] = _filled(brain[box])
    return brain


def _filled(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """The mask with its holes: what no way along voxels' faces leads to from outside."""
    empty, num = ndimage.label(~mask)
    if num == 0:
        return mask
    faces = [empty.take((0, -1), axis=axis) for axis in range(3)]
    open_to = np.zeros(num + 1, dtype=bool)
    open_to[np.unique(np.concatenate([face.ravel() for face in faces]))] = True
    open_to[0] = False
    filled: Bool[np.ndarray, "i j k"] = ~open_to[empty]
    return filled
