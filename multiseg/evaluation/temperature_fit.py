"""Fit temperatures, and the expected Dice below which a person should look, on cases not learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from multiseg.evaluation.metrics import mean_of_defined
from multiseg.evaluation.reliability import LEAST, bins_of, ece_of
from multiseg.evaluation.temperature import at_temperature
from multiseg.labels import IGNORE, LabelSpace
from multiseg.models.calibration_record import LOOK_BELOW, UNCALIBRATED, Temperatures
from multiseg.types import Mask

COLDEST, HOTTEST = 0.1, 10.0
GRID = np.round(np.geomspace(COLDEST, HOTTEST, 33), 6)
"""The temperatures that are tried, each 15% above the one before; 1 is among them."""
SMALLEST_VALUE = 1e-6
"""Of an error or a loss, by which others are divided."""
_SMALLEST = 1e-12
"""Of a probability whose logarithm is taken."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Voxels of the brain of one case, as the model sees it in some of its sequences.

    Attributes:
        sequences: that the model was given.
        probabilities: of each structure, before any calibration.
        target: index in the label space; 0 is all that no annotation names.
        predicted: what the model answers.
        weights: how many voxels of the brain each voxel stands for.
        annotated: the structures that the case is annotated for.
        dice: the true Dice of each structure, over all voxels; NaN if it has none.
    """

    database: str
    sequences: tuple[str, ...]
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


def cell_errors(
    samples: Sequence[Sample], space: LabelSpace, temperatures: Temperatures
) -> dict[tuple[str, str, tuple[str, ...]], float]:
    """The calibration error by cell: database, structure that is annotated, and sequences, whose voxels count together;
    see `reliability`. Cells without a voxel that counts are left out."""
    bins: dict[tuple[str, str, tuple[str, ...]], Float[np.ndarray, "bin 3"]] = {}
    for sample in samples:
        p = at_temperature(sample.probabilities, space, temperatures)
        for index in np.flatnonzero(sample.annotated):
            counts = sample.probabilities[index] > LEAST
            key = (sample.database, space.names[index], sample.sequences)
            truth, weights = sample.target[counts] == index + 1, sample.weights[counts]
            bins[key] = bins.get(key, 0) + bins_of(p[index][counts], truth, weights)
    errors = {key: ece_of(one) for key, one in bins.items()}
    return {key: error for key, error in errors.items() if not math.isnan(error)}


def cell_losses(
    samples: Sequence[Sample], space: LabelSpace, temperatures: Temperatures
) -> dict[tuple[str, tuple[str, ...]], float]:
    """The mean of -log p of the true structure over the voxels of the brain, by database and sequences.

    Where no annotated structure is true, p is what the annotated ones leave over, as in the losses of the training.
    """
    sums: dict[tuple[str, tuple[str, ...]], Float[np.ndarray, " 2"]] = {}
    for sample in samples:
        p = at_temperature(sample.probabilities, space, temperatures).astype(np.float64)
        true = 1 - p[sample.annotated].sum(axis=0)
        voxels = np.flatnonzero(sample.target)
        true[voxels] = p[sample.target[voxels].astype(np.intp) - 1, voxels]
        loss = -np.log(np.maximum(true, _SMALLEST)) * sample.weights
        key = (sample.database, sample.sequences)
        sums[key] = sums.get(key, 0) + np.array([loss.sum(), sample.weights.sum(dtype=np.float64)])
    return {key: float(loss / weight) for key, (loss, weight) in sums.items() if weight}


def fitted_temperatures(samples: Sequence[Sample], space: LabelSpace) -> Temperatures | None:
    """The temperatures with the least calibration error and the least loss, each relative to that before and in the
    mean over its cells; None if no voxel of the samples is a structure.

    Every cell counts the same, whatever its error: the likeliest temperatures of all voxels would be those of the few
    cells in which the model is sure and wrong, and would spoil the others. The error alone is least where all
    structures get one and the same probability, which tells sure answers no longer from others; the loss prevents that.
    Each temperature is sought by itself, in turn, on a grid, since the error is no smooth function of it; of equal ones
    the nearest to 1 is taken.
    """
    if not any(sample.target.any() for sample in samples):
        return None
    errors, losses = (measure(samples, space, UNCALIBRATED) for measure in (cell_errors, cell_losses))

    def score(temperatures: Temperatures) -> tuple[float, float]:
        error = _relative(cell_errors(samples, space, temperatures), errors)
        loss = _relative(cell_losses(samples, space, temperatures), losses)
        return error + loss, sum(abs(math.log(one)) for one in temperatures)

    found, last = UNCALIBRATED, None
    while found != last:
        last = found
        for name in Temperatures._fields:
            found = min((found._replace(**{name: float(one)}) for one in GRID), key=score)
    return found


def _relative(after: Mapping[Any, float], before: Mapping[Any, float]) -> float:
    """The mean over cells of what became of a value; 1 without a cell."""
    ratios = [after[key] / max(value, SMALLEST_VALUE) for key, value in before.items()]
    return float(np.mean(ratios)) if ratios else 1.0


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
        num_cells, num_lower: the cells (see `cell_errors`), and those whose calibration error it lowers.
        ece_before, ece_after: the mean calibration error of the cells without and with it.
        is_at_bound: the fit went as far as it may, so that the best temperatures are not known.
    """

    num_sequences: int
    temperatures: Temperatures
    num_answers: int
    num_cells: int
    num_lower: int
    ece_before: float
    ece_after: float
    is_at_bound: bool


def fit_by_number(samples: Sequence[Sample], space: LabelSpace) -> tuple[NumberFit, ...]:
    """A fit for each number of sequences with a sample in which a structure is true."""
    fits = []
    for num in sorted({len(sample.sequences) for sample in samples}):
        group = [sample for sample in samples if len(sample.sequences) == num]
        temperatures = fitted_temperatures(group, space)
        if temperatures is not None:
            fits.append(_number_fit(num, group, space, temperatures))
    return tuple(fits)


def _number_fit(num: int, group: Sequence[Sample], space: LabelSpace, temperatures: Temperatures) -> NumberFit:
    before, after = (cell_errors(group, space, one) for one in (UNCALIBRATED, temperatures))
    return NumberFit(
        num,
        temperatures,
        len(group),
        num_cells=len(before),
        num_lower=sum(after[key] < before[key] for key in before),
        ece_before=mean_of_defined(list(before.values())),
        ece_after=mean_of_defined(list(after.values())),
        is_at_bound=any(one in (GRID[0], GRID[-1]) for one in temperatures),
    )
