"""Fit temperatures, and the expected Dice below which a person should look, on cases not learnt from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.optimize import minimize_scalar

from multiseg.evaluation.metrics import mean_of_defined
from multiseg.evaluation.reliability import LEAST, bins_of, ece_of
from multiseg.evaluation.temperature import at_temperature
from multiseg.labels import IGNORE, LabelSpace
from multiseg.models.calibration_record import LOOK_BELOW, UNCALIBRATED, Temperatures
from multiseg.types import Mask

COLDEST, HOTTEST = 0.1, 10.0
AT_BOUND = 1.01
"""A temperature that is closer to a bound than by this factor is doubtful."""
_TOLERANCE = 1e-4
"""Of log T."""
_SMALLEST = 1e-12
"""Of a probability whose logarithm is taken."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Voxels of the brain of one case, as the model sees it in some of its sequences.

    Attributes:
        num_sequences: that the model was given.
        probabilities: of each structure, before any calibration.
        target: index in the label space; 0 is all that no annotation names.
        predicted: what the model answers.
        weights: how many voxels of the brain each voxel stands for.
        annotated: the structures that the case is annotated for.
        dice: the true Dice of each structure, over all voxels; NaN if it has none.
    """

    database: str
    num_sequences: int
    probabilities: Float[np.ndarray, "label voxel"]
    target: UInt8[np.ndarray, " voxel"]
    predicted: UInt8[np.ndarray, " voxel"]
    weights: Float[np.ndarray, " voxel"]
    annotated: Bool[np.ndarray, " label"]
    dice: Float[np.ndarray, " label"]


def chosen_voxels(
    probabilities: Float[np.ndarray, "label i j k"],
    target: UInt8[np.ndarray, "i j k"],
    predicted: UInt8[np.ndarray, "i j k"],
    brain: Mask,
    most: int,
) -> tuple[np.ndarray, Float[np.ndarray, " voxel"]]:
    """The flat indices of at most about `most` voxels of the brain, and how many voxels each of them stands for.

    Voxels that are predicted or true, others with a probability above `LEAST`, and the rest are three layers, of
    which the first two get 45% each, evenly spaced over the volume. So a small lesion stays whole, and memory bounded.
    """
    inside = brain & (target != IGNORE)
    is_structure = inside & ((predicted > 0) | (target > 0))
    is_likely = inside & ~is_structure & (probabilities.max(axis=0) > LEAST)
    chosen, weights = [], []
    for layer, share in ((is_structure, 0.45), (is_likely, 0.45), (inside & ~is_structure & ~is_likely, 0.1)):
        found = np.flatnonzero(layer)
        kept = min(len(found), max(1, int(share * most)))
        if kept:
            chosen.append(found[np.linspace(0, len(found) - 1, kept).round().astype(np.intp)])
            weights.append(np.full(kept, len(found) / kept, dtype=np.float32))
    if not chosen:
        return np.empty(0, np.intp), np.empty(0, np.float32)
    return np.concatenate(chosen), np.concatenate(weights)


def negative_log_likelihood(sample: Sample, space: LabelSpace, temperatures: Temperatures) -> float:
    """The mean over the voxels of the brain of -log p of the true structure; NaN without a voxel.

    Where no annotated structure is true, p is what the annotated ones leave over, as in the losses of the training.
    """
    p = at_temperature(sample.probabilities, space, temperatures).astype(np.float64)
    left_over = 1 - p[sample.annotated].sum(axis=0)
    truth = sample.target.astype(np.intp)
    is_structure = truth > 0
    left_over[is_structure] = p[truth[is_structure] - 1, np.flatnonzero(is_structure)]
    loss = -np.log(np.maximum(left_over, _SMALLEST))
    total = float(sample.weights.sum(dtype=np.float64))
    return float((loss * sample.weights).sum() / total) if total else math.nan


def mean_over_databases(samples: Sequence[Sample], values: Iterable[float]) -> float:
    """The mean over databases of the means over their samples, so that a large database does not decide alone."""
    by_database: dict[str, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        by_database.setdefault(sample.database, []).append(value)
    return mean_of_defined([mean_of_defined(group) for group in by_database.values()])


def fitted_temperatures(samples: Sequence[Sample], space: LabelSpace) -> Temperatures | None:
    """The temperatures from `COLDEST` to `HOTTEST` at which the samples are most likely; None if no voxel of them is a
    structure, since the best temperature would then be the coldest, whatever the model knows.

    That of a single structure's inside has no effect outside, so that each is found by itself; of several structures
    they are found in turn, twice.
    """
    if not any(sample.target.any() for sample in samples):
        return None
    found = UNCALIBRATED
    for _ in range(1 if len(space.labels) == 1 else 2):
        for name in Temperatures._fields:
            found = found._replace(**{name: _likeliest(samples, space, found, name)})
    return found


def _likeliest(samples: Sequence[Sample], space: LabelSpace, others: Temperatures, name: str) -> float:
    def loss(log_temperature: float) -> float:
        return _mean_loss(samples, space, others._replace(**{name: math.exp(log_temperature)}))

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": _TOLERANCE})
    return float(math.exp(found.x))


def _mean_loss(samples: Sequence[Sample], space: LabelSpace, temperatures: Temperatures) -> float:
    return mean_over_databases(samples, (negative_log_likelihood(one, space, temperatures) for one in samples))


def sampled_error(samples: Sequence[Sample], space: LabelSpace, temperatures: Temperatures) -> float:
    """The calibration error of the annotated structures: the mean over them and over databases, in which the voxels of
    all samples count together; see `reliability`."""
    bins: dict[tuple[str, int], Float[np.ndarray, "bin 3"]] = {}
    for sample in samples:
        p = at_temperature(sample.probabilities, space, temperatures)
        for index in np.flatnonzero(sample.annotated):
            counts = sample.probabilities[index] > LEAST
            truth, weights = sample.target[counts] == index + 1, sample.weights[counts]
            key = (sample.database, int(index))
            bins[key] = bins.get(key, 0) + bins_of(p[index][counts], truth, weights)
    return mean_of_defined([ece_of(one) for one in bins.values()])


def sampled_expected_dice(sample: Sample, space: LabelSpace, temperatures: Temperatures) -> Float[np.ndarray, " label"]:
    """As `reliability.expected_dice`, of each structure, from the voxels of a sample."""
    p = at_temperature(sample.probabilities, space, temperatures).astype(np.float64)
    p = np.where(p > LEAST, p, 0) * sample.weights
    values = np.full(len(p), math.nan)
    for index in range(len(p)):
        is_predicted = sample.predicted == index + 1
        total = p[index].sum() + sample.weights[is_predicted].sum(dtype=np.float64)
        if total:
            values[index] = 2 * p[index][is_predicted].sum() / total
    return values


def look_threshold(expected: Sequence[float], true: Sequence[float], poor_dice: float) -> float:
    """The expected Dice below which answers are flagged: the border that tells poor answers from others best.

    An answer is poor if its true Dice is below `poor_dice`. Of the borders halfway between neighbouring expected Dices
    it is the one with the largest share of poor answers below it, minus the share of others below it (Youden 1950);
    of equal ones the highest, which flags most. If no answer is poor it is the lowest expected Dice, and if all are
    poor just above the highest. Pairs with NaN are left out; without any it is `LOOK_BELOW`.
    """
    pairs = [(e, t) for e, t in zip(expected, true, strict=True) if not (math.isnan(e) or math.isnan(t))]
    if not pairs:
        return LOOK_BELOW
    values, is_poor = np.array([e for e, _ in pairs]), np.array([t < poor_dice for _, t in pairs])
    borders = np.unique(values)
    if not is_poor.any():
        return float(borders[0])
    if is_poor.all():
        return float(np.nextafter(borders[-1], np.inf))
    halfway = [*((borders[1:] + borders[:-1]) / 2), np.nextafter(borders[-1], np.inf)]
    gains = [(values[is_poor] < border).mean() - (values[~is_poor] < border).mean() for border in halfway]
    return float(max(zip(gains, halfway, strict=True))[1])


@dataclass(frozen=True)
class NumberFit:
    """The fit for one number of sequences.

    Attributes:
        num_answers: of the cases, each in every subset of this many sequences.
        loss_before, loss_after: the mean over databases of the negative log-likelihood, without and with it.
        ece_before, ece_after: the calibration error without and with it, see `sampled_error`.
        is_at_bound: the fit went as far as it may, so that the best temperatures are not known.
        is_kept_at_one: the likeliest temperatures would raise the calibration error of the same cases, so they are 1.
    """

    num_sequences: int
    temperatures: Temperatures
    num_answers: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float
    is_at_bound: bool
    is_kept_at_one: bool


def fit_by_number(samples: Sequence[Sample], space: LabelSpace) -> tuple[NumberFit, ...]:
    """A fit for each number of sequences with a sample in which a structure is true."""
    fits = []
    for num in sorted({sample.num_sequences for sample in samples}):
        group = [sample for sample in samples if sample.num_sequences == num]
        likeliest = fitted_temperatures(group, space)
        if likeliest is not None:
            fits.append(_number_fit(num, group, space, likeliest))
    return tuple(fits)


def _number_fit(num: int, group: Sequence[Sample], space: LabelSpace, likeliest: Temperatures) -> NumberFit:
    before = sampled_error(group, space, UNCALIBRATED)
    is_kept_at_one = sampled_error(group, space, likeliest) > before
    temperatures = UNCALIBRATED if is_kept_at_one else likeliest
    return NumberFit(
        num,
        temperatures,
        len(group),
        loss_before=_mean_loss(group, space, UNCALIBRATED),
        loss_after=_mean_loss(group, space, temperatures),
        ece_before=before,
        ece_after=sampled_error(group, space, temperatures),
        is_at_bound=not all(COLDEST * AT_BOUND < one < HOTTEST / AT_BOUND for one in temperatures),
        is_kept_at_one=is_kept_at_one,
    )
