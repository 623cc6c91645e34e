"""Metrics of a predicted mask against the true one, and their summary over many cases.

By default the values for empty masks are such that no mean improves by missing a lesion:

    outcome      lesion  prediction  dice, surface_dice  sensitivity  precision  assd_mm, hd95_mm
    both         yes     yes         as defined in `case_metrics`
    missed       yes     no          0                   0            0          the diagonal of the grid
    false alarm  no      yes         NaN                 NaN          0          NaN
    clean        no      no          NaN                 NaN          NaN        NaN

NaN is "undefined": `summarise` leaves it out of the mean and counts the cases of each kind. If a case has a lesion,
nothing is undefined, so the cases behind a mean do not depend on the prediction, and predicting nothing gets the worst
value of every metric. The precision of a missed lesion, 0/0, is 0 for that reason. Only a false alarm enters a mean
(precision, as 0) that the right answer, "clean", does not enter. `empty_masks` has the policy of the BraTS challenges,
too.

Volume differences have a sign: their mean is a bias, no score. The one in percent is NaN without a lesion.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from multiseg.errors import DataError
from multiseg.evaluation.empty_masks import UNDEFINED, EmptyPolicy, Outcome
from multiseg.types import Mask

SpacingMm: TypeAlias = tuple[float, float, float]
Distances: TypeAlias = Float[np.ndarray, " voxels"]

_MEANS = (
    *("dice", "sensitivity", "precision", "assd_mm", "hd95_mm", "surface_dice"),
    *("truth_ml", "predicted_ml", "volume_difference_ml", "volume_difference_percent"),
)
TOLERANCE_MM = 1.0
"""Of the surface Dice."""
_ROUNDING = 1 + 1e-6
"""A distance of one voxel of 1 mm is within 1 mm, though it was rounded."""


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of one prediction; NaN is undefined (see the module)."""

    dice: float
    sensitivity: float
    precision: float
    assd_mm: float
    hd95_mm: float
    surface_dice: float
    truth_ml: float
    predicted_ml: float
    overlap_ml: float
    volume_difference_ml: float
    volume_difference_percent: float
    outcome: Outcome


def case_metrics(
    predicted: Mask,
    truth: Mask,
    spacing_mm: SpacingMm,
    looked_at: Mask | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    empty: EmptyPolicy = UNDEFINED,
) -> CaseMetrics:
    """The overlap, the surface distances and the volumes of one case.

    With P the predicted and T the true voxels:
        dice = 2 |P ∩ T| / (|P| + |T|),  sensitivity = |P ∩ T| / |T|,  precision = |P ∩ T| / |P|
    and with d(A, B) the distances from each surface voxel of A to the nearest surface voxel of B:
        assd = (sum d(P, T) + sum d(T, P)) / (num d(P, T) + num d(T, P))
        hd95 = max(95th percentile of d(P, T), 95th percentile of d(T, P))
        surface_dice = the share of d(P, T) and d(T, P) together that is at most the tolerance
    A surface voxel is a foreground voxel with a background voxel, or the end of the grid, at one of its
    six faces. Distances run between voxel centres. With V the volumes of P and T:
        volume_difference_ml = V(P) - V(T),  volume_difference_percent = 100 (V(P) - V(T)) / V(T)

    Args:
        spacing_mm: the size of a voxel along i, j and k.
        looked_at: False where a voxel is ignored: it is background in both masks, also for the volumes.
        tolerance_mm: of the surface Dice (Nikolov et al. 2018, arXiv:1809.04430, with voxels instead of areas).
        empty: the scores where a mask is empty.

    Raises:
        DataError: a spacing is not a positive number.
    """
    check_spacing_mm(spacing_mm)
    if looked_at is not None:
        predicted, truth = predicted & looked_at, truth & looked_at
    num_predicted, num_true = int(predicted.sum()), int(truth.sum())
    num_hits = int((predicted & truth).sum())
    outcome = outcome_of(has_lesion=num_true > 0, has_prediction=num_predicted > 0)
    voxel_ml = math.prod(spacing_mm) / 1000
    if outcome == "both":
        overlap = (2 * num_hits / (num_predicted + num_true), num_hits / num_true, num_hits / num_predicted)
        surface = _surface_scores(predicted, truth, spacing_mm, tolerance_mm)
    else:
        scores = empty.scores(outcome)
        overlap = (scores.overlap, scores.overlap, scores.precision)
        distance_mm = scores.diagonals * diagonal_mm(truth.shape, spacing_mm)
        surface = (distance_mm, distance_mm, scores.overlap)
    return CaseMetrics(
        *overlap,
        *surface,
        truth_ml=num_true * voxel_ml,
        predicted_ml=num_predicted * voxel_ml,
        overlap_ml=num_hits * voxel_ml,
        volume_difference_ml=(num_predicted - num_true) * voxel_ml,
        volume_difference_percent=100 * (num_predicted - num_true) / num_true if num_true else math.nan,
        outcome=outcome,
    )


def check_spacing_mm(spacing_mm: SpacingMm) -> None:
    """Raises DataError unless these are three positive numbers."""
    if not all(math.isfinite(size) and size > 0 for size in spacing_mm):
        raise DataError(f"the spacing is {spacing_mm} mm. Give three positive sizes, along i, j and k.")


def dice(predicted: Mask, truth: Mask) -> float:
    """2 |P ∩ T| / (|P| + |T|); NaN without a lesion."""
    num_true = int(truth.sum())
    return 2 * int((predicted & truth).sum()) / (int(predicted.sum()) + num_true) if num_true else math.nan


def summarise(metrics: Sequence[CaseMetrics]) -> dict[str, float | int]:
    """The mean of each number over the cases that define it (NaN if none does), and the counts of cases.

    The means keep the names of the fields, and NAME_sd is the standard deviation. By default Dice, sensitivity and the
    distances are means over the `num_with_lesion` cases, precision over these and the false alarms, volumes over all.

    NAME_pooled is Dice, sensitivity or precision of the voxels of all cases together, false alarms included; a case
    counts by the volume of its lesions. With one voxel size, this is the number that many published tables give.
    """
    means = means_and_deviations(_MEANS, {name: [getattr(case, name) for case in metrics] for name in _MEANS})
    outcomes = [case.outcome for case in metrics]
    num_missed, num_false_alarms = outcomes.count("missed"), outcomes.count("false alarm")
    return {
        **means,
        **_pooled(metrics),
        "num_cases": len(outcomes),
        "num_with_lesion": outcomes.count("both") + num_missed,
        "num_missed": num_missed,
        "num_lesion_free": outcomes.count("clean") + num_false_alarms,
        "num_false_alarms": num_false_alarms,
    }


def means_and_deviations(names: Iterable[str], rows: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By NAME the mean, and by NAME_sd the standard deviation, of the cases that define it."""
    numbers = {}
    for name in names:
        numbers[name], numbers[f"{name}_sd"] = mean_of_defined(rows[name]), deviation_of_defined(rows[name])
    return numbers


def mean_of_defined(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def deviation_of_defined(values: Sequence[float]) -> float:
    """The standard deviation (with n - 1) of the values that are not NaN; NaN if there are fewer than two."""
    defined = [value for value in values if not math.isnan(value)]
    return stdev(defined) if len(defined) > 1 else math.nan


def share_of(part: float | int, whole: float | int) -> float:
    """part / whole; NaN if the whole is 0."""
    return part / whole if whole else math.nan


def _pooled(metrics: Sequence[CaseMetrics]) -> dict[str, float]:
    names = ("overlap_ml", "truth_ml", "predicted_ml")
    overlap, truth, predicted = (math.fsum(getattr(case, name) for case in metrics) for name in names)
    return {
        "dice_pooled": share_of(2 * overlap, truth + predicted) if truth else math.nan,
        "sensitivity_pooled": share_of(overlap, truth),
        "precision_pooled": share_of(overlap, predicted) if predicted or not truth else 0.0,
    }


def outcome_of(*, has_lesion: bool, has_prediction: bool) -> Outcome:
    """The outcome of a case."""
    if has_lesion:
        return "both" if has_prediction else "missed"
    return "false alarm" if has_prediction else "clean"


def diagonal_mm(shape: Sequence[int], spacing_mm: SpacingMm) -> float:
    """The diagonal of a grid."""
    return math.hypot(*(n * size for n, size in zip(shape, spacing_mm, strict=True)))


def _surface_scores(
    predicted: Mask, truth: Mask, spacing_mm: SpacingMm, tolerance_mm: float
) -> tuple[float, float, float]:
    """ASSD and HD95 in mm, and the surface Dice, of two masks that are not empty."""
    box = joint_box(predicted | truth)
    predicted_surface, true_surface = surface_of(predicted[box]), surface_of(truth[box])
    to_truth = _distances(predicted_surface, true_surface, spacing_mm)
    to_prediction = _distances(true_surface, predicted_surface, spacing_mm)
    both = np.concatenate([to_truth, to_prediction])
    within = np.count_nonzero(both <= tolerance_mm * _ROUNDING)
    return float(both.mean()), hd95_of(to_truth, to_prediction), within / len(both)


def hd95_of(to_truth: Distances, to_prediction: Float[np.ndarray, " others"]) -> float:
    """The larger of the 95th percentiles of the distances in both directions."""
    return float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95)))


def joint_box(foreground: Mask, margin: int = 1) -> tuple[slice, ...]:
    """The smallest box around a foreground, some voxels wider on each side within the grid."""
    (box,) = ndimage.find_objects(foreground.view(np.uint8))
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)


def surface_of(mask: Mask) -> Mask:
    """The foreground voxels with a background voxel, or the end of the grid, at one of their six faces."""
    surface: Mask = mask & ~ndimage.binary_erosion(mask, border_value=0)
    return surface


def _distances(start: Mask, goal: Mask, spacing_mm: SpacingMm) -> Distances:
    """Distances from each voxel of `start` to the nearest voxel of `goal`, in mm."""
    # A map of the distances of all voxels would take four times the memory, and only those of the start are needed.
    nearest = ndimage.distance_transform_edt(~goal, sampling=spacing_mm, return_distances=False, return_indices=True)
    steps_mm = (nearest[:, start] - np.nonzero(start)) * np.asarray(spacing_mm)[:, None]
    distances_mm: Distances = np.sqrt(np.add.reduce(steps_mm * steps_mm, axis=0))
    return distances_mm
