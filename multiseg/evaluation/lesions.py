"""Metrics of lesions instead of voxels: which were found, which are false, and how well each fits.

Components are 26-connected. True components whose dilations touch are one lesion. A predicted component belongs to each
lesion whose dilation it meets, and to a lesion all its components together; a component that meets none is false.
Lesions that the rule leaves out count neither as found nor as missed, and what meets them is not false.

The definitions are those of the BraTS 2023 challenges (github.com/rachitsaluja/BraTS-2023-Metrics), with two
differences: HD95 is that of `metrics`, and the distance of a missed or false lesion is the diagonal of the case's grid
instead of 374 mm, which is nearly that of their grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from multiseg.evaluation.empty_masks import UNDEFINED, EmptyPolicy, Scores
from multiseg.evaluation.metrics import (
    SpacingMm,
    check_spacing_mm,
    diagonal_mm,
    hd95_of,
    joint_box,
    means_and_deviations,
    share_of,
    surface_of,
)
from multiseg.types import Mask


@dataclass(frozen=True)
class LesionRule:
    """What is one lesion, and which lesions count.

    Attributes:
        dilation: in voxels: so many times every voxel grows by its 18 neighbours.
        volume_mm3: lesions below this volume are left out.
        more_than: whether those of exactly this volume are left out, too.
    """

    dilation: int
    volume_mm3: float
    more_than: bool = True

    def counts(self, volume_mm3: Float[np.ndarray, " lesion"]) -> np.ndarray:
        """Which of these volumes count."""
        rounded = np.round(volume_mm3, 6)
        counted: np.ndarray = rounded > self.volume_mm3 if self.more_than else rounded >= self.volume_mm3
        return counted


RULES = {
    "ours": LesionRule(1, 3.0, more_than=False),
    "brats-gli": LesionRule(3, 50.0),
    "brats-ssa": LesionRule(3, 50.0),
    "brats-ped": LesionRule(3, 50.0),
    "brats-men": LesionRule(1, 50.0),
    "brats-met": LesionRule(1, 2.0),
}
SIZES: Mapping[str, tuple[float, float]] = {
    "under_10_mm3": (0.0, 10.0),
    "10_to_100_mm3": (10.0, 100.0),
    "100_to_1000_mm3": (100.0, 1000.0),
    "over_1000_mm3": (1000.0, math.inf),
}
"""Lesions by their volume: from the first number to below the second."""
TOUCHING = ndimage.generate_binary_structure(3, 3)
"""Voxels that share a face, an edge or a corner belong to one component (26 neighbours)."""
GROWTH = ndimage.generate_binary_structure(3, 2)
COUNTS = (
    *("num_lesions", "num_lesions_found", "num_lesions_false"),
    *(f"num_lesions_{size}" for size in SIZES),
    *(f"num_found_{size}" for size in SIZES),
)
SCORES = ("lesion_f1", "lesion_dice", "lesion_hd95_mm")
COLUMNS = (*COUNTS, *SCORES)


@dataclass(frozen=True)
class Lesions:
    """The true lesions of a case that count, and what a prediction makes of them.

    Attributes:
        volume_mm3: of each lesion.
        dice, hd95_mm: of each lesion; 0 and the diagonal of the grid if nothing belongs to it.
        is_found: whether a predicted component belongs to it.
        num_false: predicted components that belong to no lesion.
        diagonal_mm: of the grid.
    """

    volume_mm3: Float[np.ndarray, " lesion"]
    dice: Float[np.ndarray, " lesion"]
    hd95_mm: Float[np.ndarray, " lesion"]
    is_found: np.ndarray
    num_false: int
    diagonal_mm: float


def find_lesions(predicted: Mask, truth: Mask, spacing_mm: SpacingMm, rule: LesionRule) -> Lesions:
    """Match the predicted components of a case with its true lesions, see the module.

    Raises:
        DataError: a spacing is not a positive number.
    """
    check_spacing_mm(spacing_mm)
    diagonal = diagonal_mm(truth.shape, spacing_mm)
    both = predicted | truth
    if not both.any():
        nothing = np.zeros(0)
        return Lesions(nothing, nothing, nothing, nothing > 0, 0, diagonal)
    box = joint_box(both, margin=rule.dilation + 1)
    predicted, truth = predicted[box], truth[box]
    grown, num_lesions = ndimage.label(_dilated(truth, rule.dilation), TOUCHING)
    components, num_components = ndimage.label(predicted, TOUCHING)
    lesions = np.where(truth, grown, 0)
    meets = _meetings(grown, components, num_lesions, num_components)
    voxels, sizes = _sizes(lesions, num_lesions), _sizes(components, num_components)
    hits = _sizes(lesions, num_lesions, predicted)
    belonging = np.array([sum(sizes[component] for component in met) for met in meets])
    counted = np.flatnonzero(rule.counts(voxels * math.prod(spacing_mm)) & (np.arange(num_lesions + 1) > 0))
    hd95 = _distances(lesions, components, [(int(lesion), meets[lesion]) for lesion in counted], spacing_mm, diagonal)
    return Lesions(
        volume_mm3=voxels[counted] * math.prod(spacing_mm),
        dice=2 * hits[counted] / (voxels[counted] + belonging[counted]),
        hd95_mm=hd95,
        is_found=belonging[counted] > 0,
        num_false=num_components - len(set().union(*meets)),
        diagonal_mm=diagonal,
    )


def lesion_metrics(lesions: Lesions, empty: EmptyPolicy = UNDEFINED) -> dict[str, float | int]:
    """The columns of a case.

    With L the number of lesions, TP those that were found, FN the others and FP the false components:
        lesion_f1 = 2 TP / (2 TP + FP + FN)
        lesion_dice, lesion_hd95_mm = the sum over the lesions, and FP times 0 or the diagonal, divided by L + FP
    Where there is neither a lesion nor a false component, the policy for clean cases decides.
    """
    num_lesions, num_found, num_false = len(lesions.dice), int(lesions.is_found.sum()), lesions.num_false
    counts: dict[str, float | int] = dict(zip(COUNTS[:3], (num_lesions, num_found, num_false), strict=True))
    for size, (least, below) in SIZES.items():
        has_size = (lesions.volume_mm3 >= least) & (lesions.volume_mm3 < below)
        counts[f"num_lesions_{size}"] = int(has_size.sum())
        counts[f"num_found_{size}"] = int((has_size & lesions.is_found).sum())
    return {**counts, **_scores(lesions, num_found, empty.clean)}


def no_lesion_metrics() -> dict[str, float | int]:
    """The columns of a structure that is no lesion."""
    return dict.fromkeys(COLUMNS, math.nan)


def summarise_lesions(rows: Mapping[str, Sequence[float]]) -> dict[str, float | int]:
    """The means over cases with their standard deviations, the numbers of lesions of all cases, and what was found.

    lesion_f1_pooled and lesion_sensitivity_pooled are those of the lesions of all cases together; detected_SIZE is the
    share of the lesions of this size that were found. Nothing is counted for structures that are no lesions: NaN.
    """
    if all(math.isnan(value) for value in rows["num_lesions"]):
        totals: dict[str, float | int] = dict.fromkeys(COUNTS, math.nan)
    else:
        totals = {name: int(np.nansum(rows[name])) for name in COUNTS}
    num_lesions, num_found, num_false = (totals[name] for name in COUNTS[:3])
    return {
        **means_and_deviations(SCORES, rows),
        "lesion_f1_pooled": share_of(2 * num_found, num_lesions + num_found + num_false),
        "lesion_sensitivity_pooled": share_of(num_found, num_lesions),
        **{f"detected_{size}": share_of(totals[f"num_found_{size}"], totals[f"num_lesions_{size}"]) for size in SIZES},
        **totals,
    }


def _scores(lesions: Lesions, num_found: int, clean: Scores) -> dict[str, float]:
    number = len(lesions.dice) + lesions.num_false
    if not number:
        values = (clean.overlap, clean.overlap, clean.diagonals * lesions.diagonal_mm)
    else:
        distance_mm = float(lesions.hd95_mm.sum()) + lesions.num_false * lesions.diagonal_mm
        f1 = 2 * num_found / (num_found + number)
        values = (f1, float(lesions.dice.sum()) / number, distance_mm / number)
    return dict(zip(SCORES, values, strict=True))


def _dilated(mask: Mask, times: int) -> Mask:
    if not times:
        return mask  # 0 iterations mean "until nothing changes" to scipy
    grown: Mask = ndimage.binary_dilation(mask, GROWTH, iterations=times)
    return grown


def _sizes(labels: Int[np.ndarray, "i j k"], num: int, inside: Mask | None = None) -> Int[np.ndarray, " label"]:
    """The number of voxels of each label, with 0, in a mask or everywhere. `bincount` copies what it counts, so it gets
    a plane at a time."""
    sizes = np.zeros(num + 1, dtype=np.int64)
    for index, plane in enumerate(labels):
        sizes += np.bincount(plane.ravel() if inside is None else plane[inside[index]], minlength=num + 1)
    return sizes


def _meetings(
    grown: Int[np.ndarray, "i j k"], components: Int[np.ndarray, "i j k"], num_lesions: int, num_components: int
) -> list[set[int]]:
    """The predicted components that meet each grown lesion, by its number; 0 is no lesion and meets none."""
    meets: list[set[int]] = [set() for _ in range(num_lesions + 1)]
    for lesions, found in zip(grown, components, strict=True):  # pairs of whole volumes take much memory
        both = (lesions > 0) & (found > 0)
        pairs = np.unique(lesions[both].astype(np.int64) * (num_components + 1) + found[both])
        for lesion, component in zip(*np.divmod(pairs, num_components + 1), strict=True):
            meets[int(lesion)].add(int(component))
    return meets


def _distances(
    lesions: Int[np.ndarray, "i j k"],
    components: Int[np.ndarray, "i j k"],
    matches: Sequence[tuple[int, set[int]]],
    spacing_mm: SpacingMm,
    diagonal: float,
) -> Float[np.ndarray, " lesion"]:
    """HD95 of each lesion and the components that belong to it; the diagonal if none does.

    The surface of a mask is that of its lesions or components, since no two of them touch. Trees of surface points are
    as exact as distance maps, and do not grow with the box around a lesion and what belongs to it.
    """
    from scipy.spatial import KDTree  # slow to import, and a training imports this module

    true_points, found_points = _surface_points(lesions, spacing_mm), _surface_points(components, spacing_mm)
    distances = np.full(len(matches), diagonal)
    answers: dict[frozenset[int], KDTree] = {}
    for index, (lesion, met) in enumerate(matches):
        if not met:
            continue
        key = frozenset(met)
        if key not in answers:  # one false component may meet many lesions
            answers[key] = KDTree(np.concatenate([found_points[component] for component in sorted(met)]))
        truth, answer = KDTree(true_points[lesion]), answers[key]
        distances[index] = hd95_of(truth.query(answer.data)[0], answer.query(truth.data)[0])
    return distances


def _surface_points(labels: Int[np.ndarray, "i j k"], spacing_mm: SpacingMm) -> dict[int, Float[np.ndarray, "point 3"]]:
    """The surface voxels of each label, in mm."""
    index = np.argwhere(surface_of(labels > 0))
    if not len(index):
        return {}
    owner = labels[tuple(index.T)]
    order = np.argsort(owner, kind="stable")
    numbers, starts = np.unique(owner[order], return_index=True)
    points = np.split(index[order] * np.array(spacing_mm), starts[1:])
    return dict(zip(map(int, numbers), points, strict=True))
