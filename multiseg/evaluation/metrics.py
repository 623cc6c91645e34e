"""Metrics of a predicted mask against the true one, and their summary over many cases.

The values for empty masks are such that no mean improves by missing a lesion:

    outcome      lesion  prediction  dice  sensitivity  precision  assd_mm, hd95_mm
    both         yes     yes         as defined in `case_metrics`
    missed       yes     no          0     0            0          the diagonal of the grid
    false alarm  no      yes         NaN   NaN          0          NaN
    clean        no      no          NaN   NaN          NaN        NaN

NaN is "undefined": `summarise` leaves it out of the mean and counts the cases of each kind. If a case has a lesion,
nothing is undefined, so the cases behind a mean do not depend on the prediction, and predicting nothing gets the worst
value of every metric. The precision of a missed lesion, 0/0, is 0 for that reason. Only a false alarm enters a mean
(precision, as 0) that the right answer, "clean", does not enter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from multiseg.errors import DataError
from multiseg.types import Mask

Outcome: TypeAlias = Literal["both", "missed", "false alarm", "clean"]
SpacingMm: TypeAlias = tuple[float, float, float]
Distances: TypeAlias = Float[np.ndarray, " voxels"]

_MEANS = ("dice", "sensitivity", "precision", "assd_mm", "hd95_mm", "truth_ml", "predicted_ml")


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of one prediction; NaN is undefined (see the module)."""

    dice: float
    sensitivity: float
    precision: float
    assd_mm: float
    hd95_mm: float
    truth_ml: float
    predicted_ml: float
    outcome: Outcome


def case_metrics(predicted: Mask, truth: Mask, spacing_mm: SpacingMm, looked_at: Mask | None = None) -> CaseMetrics:
    """The overlap, the surface distances and the volumes of one case.

    With P the predicted and T the true voxels:
        dice = 2 |P ∩ T| / (|P| + |T|),  sensitivity = |P ∩ T| / |T|,  precision = |P ∩ T| / |P|
    and with d(A, B) the distances from each surface voxel of A to the nearest surface voxel of B:
        assd = (sum d(P, T) + sum d(T, P)) / (num d(P, T) + num d(T, P))
        hd95 = max(95th percentile of d(P, T), 95th percentile of d(T, P))
    A surface voxel is a foreground voxel with a background voxel, or the end of the grid, at one of its
    six faces. Distances run between voxel centres.

    Args:
        spacing_mm: the size of a voxel along i, j and k.
        looked_at: False where a voxel is ignored: it is background in both masks, also for the volumes.

    Raises:
        DataError: a spacing is not a positive number.
    """
    if not all(math.isfinite(size) and size > 0 for size in spacing_mm):
        raise DataError(f"the spacing is {spacing_mm} mm. Give three positive sizes, along i, j and k.")
    if looked_at is not None:
        predicted, truth = predicted & looked_at, truth & looked_at
    num_predicted, num_true = int(predicted.sum()), int(truth.sum())
    num_hits = int((predicted & truth).sum())
    assd_mm, hd95_mm = _surface_scores(predicted, truth, spacing_mm)
    voxel_ml = math.prod(spacing_mm) / 1000
    return CaseMetrics(
        dice=dice(predicted, truth),
        sensitivity=num_hits / num_true if num_true else math.nan,
        precision=num_hits / num_predicted if num_predicted else 0.0 if num_true else math.nan,
        assd_mm=assd_mm,
        hd95_mm=hd95_mm,
        truth_ml=num_true * voxel_ml,
        predicted_ml=num_predicted * voxel_ml,
        outcome=_outcome(has_lesion=num_true > 0, has_prediction=num_predicted > 0),
    )


def dice(predicted: Mask, truth: Mask) -> float:
    """2 |P ∩ T| / (|P| + |T|); NaN without a lesion."""
    num_true = int(truth.sum())
    return 2 * int((predicted & truth).sum()) / (int(predicted.sum()) + num_true) if num_true else math.nan


def summarise(metrics: Sequence[CaseMetrics]) -> dict[str, float | int]:
    """The mean of each number over the cases that define it (NaN if none does), and the counts of cases.

    The means keep the names of the fields. Dice, sensitivity and the distances are means over the
    `num_with_lesion` cases, precision over these and the false alarms, volumes over all.
    """
    means = {name: mean_of_defined([getattr(case, name) for case in metrics]) for name in _MEANS}
    outcomes = [case.outcome for case in metrics]
    num_missed, num_false_alarms = outcomes.count("missed"), outcomes.count("false alarm")
    return means | {
        "num_cases": len(outcomes),
        "num_with_lesion": outcomes.count("both") + num_missed,
        "num_missed": num_missed,
        "num_lesion_free": outcomes.count("clean") + num_false_alarms,
        "num_false_alarms": num_false_alarms,
    }


def mean_of_defined(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _outcome(*, has_lesion: bool, has_prediction: bool) -> Outcome:
    if has_lesion:
        return "both" if has_prediction else "missed"
    return "false alarm" if has_prediction else "clean"


def _surface_scores(predicted: Mask, truth: Mask, spacing_mm: SpacingMm) -> tuple[float, float]:
    """ASSD and HD95 in mm; for empty masks see the module."""
    if not truth.any():
        return math.nan, math.nan
    if not predicted.any():
        diagonal_mm = math.hypot(*(n * size for n, size in zip(truth.shape, spacing_mm, strict=True)))
        return diagonal_mm, diagonal_mm
    box = _joint_box(predicted | truth)
    predicted_surface, true_surface = _surface(predicted[box]), _surface(truth[box])
    to_truth = _distances(predicted_surface, true_surface, spacing_mm)
    to_prediction = _distances(true_surface, predicted_surface, spacing_mm)
    assd_mm = np.concatenate([to_truth, to_prediction]).mean()
    hd95_mm = max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))
    return float(assd_mm), float(hd95_mm)


def _joint_box(foreground: Mask) -> tuple[slice, ...]:
    """The smallest box around the foreground, one voxel wider on each side within the grid."""
    (box,) = ndimage.find_objects(foreground.astype(np.uint8))
    return tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)


def _surface(mask: Mask) -> Mask:
    surface: Mask = mask & ~ndimage.binary_erosion(mask, border_value=0)
    return surface


def _distances(start: Mask, goal: Mask, spacing_mm: SpacingMm) -> Distances:
    """Distances from each voxel of `start` to the nearest voxel of `goal`, in mm."""
    distance_map = np.asarray(ndimage.distance_transform_edt(~goal, sampling=spacing_mm))
    distances_mm: Distances = distance_map[start]
    return distances_mm
