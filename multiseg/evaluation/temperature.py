"""Probabilities at a temperature: softer where a model was too sure of itself, and never another answer.

Temperature scaling divides logits by a number T (Guo et al. 2017, arXiv:1706.04599). On probabilities p of a softmax it
is p^(1/T), made to sum to 1. Over all classes at once it would change answers, since the decision rule of multiseg is
no argmax over all classes (`multiseg.evaluation.decision`). So it is applied in the two steps of that rule:

    with P the sum of all lesions:  p'(l) ~ p(l)^(1/T) and p'(no lesion) ~ (1 - P)^(1/T), which sum to 1;
    given no lesion:                p'(t) ~ p(t)^(1/T) and p'(0) ~ p(0)^(1/T), which sum to p'(no lesion).

In each step T is one number where a structure wins (inside), and another where it does not (outside): a network that
was trained on patches around lesions expects more of them than there are, so that it is too sure inside, and not sure
enough outside. Within a voxel the order of what the rule compares stays, so the rule gives the same answer for p and
p'. For a single structure p' is sigmoid(logit / T), which grows with p and keeps 0.5.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from multiseg.labels import LabelSpace
from multiseg.models.calibration_record import UNCALIBRATED, Temperatures

VOXELS_AT_ONCE = 2**18
"""Whole volumes in double precision would need a lot of memory."""
LEAST = 1e-7
"""Of 1 - p, where single precision tells p no longer from 1."""


def at_temperature(
    probabilities: Float[np.ndarray, "label ..."], space: LabelSpace, temperatures: Temperatures
) -> Float[np.ndarray, "label ..."]:
    """The probabilities of the structures of the space, without background, at temperatures; see the module.

    At 1 they are returned as they are. A probability of exactly 0 stays 0.
    """
    if temperatures == UNCALIBRATED:
        return probabilities
    is_lesion = np.array([label.kind == "lesion" for label in space.labels])
    made = np.empty(probabilities.shape, dtype=np.float32)
    given, new = probabilities.reshape(len(is_lesion), -1), made.reshape(len(is_lesion), -1)
    for start in range(0, given.shape[1], VOXELS_AT_ONCE):
        part = slice(start, start + VOXELS_AT_ONCE)
        new[:, part] = _scaled(given[:, part].astype(np.float64), is_lesion, temperatures)
    if len(is_lesion) == 1:  # rounding must not carry a voxel over the border of the mask
        np.minimum(new, np.nextafter(np.float32(0.5), np.float32(0)), out=new, where=given < 0.5)
    return made


def _scaled(
    p: Float[np.ndarray, "label voxel"], is_lesion: Bool[np.ndarray, " label"], temperatures: Temperatures
) -> Float[np.ndarray, "label voxel"]:
    made = np.empty_like(p)
    lesions, tissues = p[is_lesion], p[~is_lesion]
    no_lesion = np.maximum(1 - lesions.sum(axis=0), LEAST)
    *scaled, scaled_rest = _normalised(np.vstack([lesions, no_lesion]), temperatures)
    if len(lesions):
        made[is_lesion] = scaled
    if len(tissues):
        background = np.maximum(no_lesion - tissues.sum(axis=0), LEAST * no_lesion)
        made[~is_lesion] = scaled_rest * _normalised(np.vstack([tissues, background]), temperatures)[:-1]
    return made


def _normalised(p: Float[np.ndarray, "choice voxel"], temperatures: Temperatures) -> Float[np.ndarray, "choice voxel"]:
    """Each to the power 1 / T, made to sum to 1. The last one wins where all others are below it: that is outside."""
    power = np.where(p[:-1].max(axis=0, initial=0) >= p[-1], 1 / temperatures.inside, 1 / temperatures.outside)
    raised = (p / p.max(axis=0)) ** power  # divided by the largest, so that not all of them underflow
    scaled: Float[np.ndarray, "choice voxel"] = raised / raised.sum(axis=0)
    return scaled
