"""Normalise intensities in the brain: remove the bias field, standardise the contrast, and store float16."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import Box
from multiseg.store.preparation.brain import BrainImage
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.recipe import PERCENTILES, Recipe
from multiseg.types import Mask, Voxels

LEAST_SPREAD = 0.02
"""The least width of the middle 98% of a brain's values, in standard deviations; healthy scans have 3 to 6."""
FARTHEST = 10
"""The farthest that values may be beyond their middle 98%, in widths of it.

106 scans of nine databases reach 3.9; a flipped bit reaches 30 or more."""
LIMIT = 60_000
"""Scores are clipped here to fit float16. Only damaged images have larger ones."""
N4_SHRINK, N4_STEPS = 4, (50, 50, 50, 50)
SLAB = 1 << 14
"""Voxels that are converted at a time in float64. All at once would need five times the memory of the image."""
LARGEST_ROUNDING = 0.01
"""The largest rounding error of raw values in float16, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Normalised:
    """A sequence as it is stored, 0 outside its brain. The raw intensity is `voxels * std + mean`.

    That is the intensity after N4, if the recipe has it, and on the standard scale for "histogram". `details` has the
    "percentiles" of the case and their "landmarks": `standardise` with the two exchanged converts back.
    """

    box: Box
    voxels: Float[np.ndarray, "i j k"]
    mask: Mask
    mean: float
    std: float
    details: dict[str, Any] = field(default_factory=dict)


def normalise(name: str, volume: Volume, image: BrainImage, recipe: Recipe, journal: Journal) -> Normalised:
    """Normalise a sequence by the recipe (z-scores: Xu et al. 2024, appendix A).

    Raises:
        SourceError: raw values do not fit float16, the sequence has no landmarks, or a few voxels are so extreme that
            the others would become one value.
    """
    values = image.values[image.mask]
    _check_extremes(name, volume, values, journal)
    outside = image.outside
    details: dict[str, Any] = {}
    if recipe.normalise == "histogram":
        percentiles, landmarks = _scales(name, volume, values, recipe)
        values = standardise(values, percentiles, landmarks)
        percentiles, outside = [value + outside for value in percentiles], 0.0
        details = {"percentiles": percentiles, "landmarks": landmarks}
        journal.step(name, f"histogram: percentiles {_list(percentiles)} to {_list(landmarks)}")
    if recipe.normalise == "none":
        mean, std, stored = 0.0, 1.0, _raw_float16(name, volume, values + np.float32(outside))
        journal.step(name, f"raw values inside the brain ({values.size} voxels), 0 outside")
    else:
        mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        stored = _scores(values, mean, std)
        mean += outside
        numbers = f"{values.size} voxels: mean {mean:.6g}, std {std:.6g}"
        journal.step(name, f"z-score inside the brain ({numbers}), 0 outside")
    voxels = np.zeros(image.mask.shape, dtype=np.float16)
    voxels[image.mask] = stored
    return Normalised(image.box, voxels, image.mask, mean, std, details)


def _check_extremes(name: str, volume: Volume, values: Num[np.ndarray, " voxel"], journal: Journal) -> None:
    """Refuse values so extreme that z-scores in float16 would lose the brain; warn of outliers.

    Outliers, such as from a flipped bit, are counted in the original voxels, since resampling blurs them.
    """
    low, high = (float(value) for value in np.percentile(values[:: max(1, values.size // 100_000)], (1, 99)))
    std = float(values.std(dtype=np.float64))
    if high - low < LEAST_SPREAD * std:
        message = (
            f"{name} ({volume.path}): 98% of the brain is between {low + volume.outside:.6g} and "
            f"{high + volume.outside:.6g}, but the values range from {float(values.min()) + volume.outside:.6g} to "
            f"{float(values.max()) + volume.outside:.6g}. Such voxels come from a faulty conversion: repair "
            "them, or export the scan again."
        )
        raise SourceError(message, code="EXTREME_VALUES", file=str(volume.path))
    # The original voxels: resampling reduces noise, and thus the width of the middle 98%.
    original = volume.voxels[volume.voxels != 0]
    low, high = (float(value) for value in np.percentile(original[:: max(1, original.size // 100_000)], (1, 99)))
    far = FARTHEST * (high - low)
    num_above, num_below = np.count_nonzero(original > high + far), np.count_nonzero(original < low - far)
    num_outliers = num_above + num_below
    if num_outliers:
        farthest = float(original.max() if num_above else original.min()) + volume.outside
        journal.warn("OUTLIERS", f"{name} ({volume.path.name}): voxels far from all others ({num_outliers}), up to "
                     f"{farthest:.6g}, while 98% are between {low + volume.outside:.6g} and "
                     f"{high + volume.outside:.6g}. Damaged bits? Compare the file with its original.")  # fmt: skip


def _scores(values: Num[np.ndarray, " voxel"], mean: float, std: float) -> Float[np.ndarray, " voxel"]:
    with np.errstate(over="ignore"):
        scores = values - np.float32(mean)
        scores /= np.float32(std)
    return np.clip(scores, -LIMIT, LIMIT, out=scores).astype(np.float16)


def _raw_float16(name: str, volume: Volume, values: Num[np.ndarray, " voxel"]) -> Float[np.ndarray, " voxel"]:
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16)
    peak = float(np.abs(values).max())
    std = float(values.std(dtype=np.float64))
    error = float(np.sqrt(np.mean((stored.astype(np.float64) - values) ** 2))) if np.isfinite(stored).all() else np.inf
    if error > LARGEST_ROUNDING * std:
        why = f"up to {peak:.4g} (the limit is 65504)"
        if not np.isinf(error):
            why = f"rounded by {error / std:.1%} of their standard deviation"
        message = (
            f"{name} ({volume.path}) has raw values that do not fit into float16: {why}. "
            "Use --normalise zscore, or rescale the images."
        )
        raise SourceError(message, code="NOT_FLOAT16", file=str(volume.path))
    return stored


def _scales(
    name: str, volume: Volume, values: Num[np.ndarray, " voxel"], recipe: Recipe
) -> tuple[list[float], list[float]]:
    """The case's percentiles and their landmarks, both strictly increasing."""
    if name not in recipe.landmarks:
        message = (
            f"{name} ({volume.path}) has no landmarks, since none of the cases that they were learnt from has it. "
            "Learn them from cases with every sequence, or use --normalise zscore."
        )
        raise SourceError(message, code="NO_LANDMARKS", file=str(volume.path))
    pairs: list[tuple[float, float]] = []
    for percentile, landmark in zip(percentiles_of(values), recipe.landmarks[name], strict=True):
        if not pairs or (percentile > pairs[-1][0] and landmark > pairs[-1][1]):
            pairs.append((percentile, landmark))
    if len(pairs) < 2:
        message = f"{name} ({volume.path}) has one value in most of the brain, so its histogram has no landmarks."
        raise SourceError(message, code="CONSTANT_IMAGE", file=str(volume.path))
    return [percentile for percentile, _ in pairs], [landmark for _, landmark in pairs]


def percentiles_of(values: Num[np.ndarray, " voxel"]) -> tuple[float, ...]:
    """The `PERCENTILES` of the brain's values."""
    return tuple(float(value) for value in np.percentile(values, PERCENTILES))


def standardise(
    values: Num[np.ndarray, "*shape"], percentiles: list[float], landmarks: list[float]
) -> Float[np.ndarray, "*shape"]:
    """Map values to the standard scale, linearly between each percentile and the next (Nyul & Udupa 2000).

    The outermost lines are extended. Both lists must increase strictly; exchange them to convert back.
    """
    x, y = np.asarray(percentiles, dtype=np.float64), np.asarray(landmarks, dtype=np.float64)
    slopes = np.diff(y) / np.diff(x)
    flat = values.ravel()
    scaled = np.empty(flat.shape, dtype=np.float32)
    for start in range(0, flat.size, SLAB):
        slab = flat[start : start + SLAB]
        line = np.clip(np.searchsorted(x, slab, side="right") - 1, 0, len(slopes) - 1)
        scaled[start : start + SLAB] = y[line] + slopes[line] * (slab - x[line])
    return scaled.reshape(values.shape)


def _list(numbers: list[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


def remove_bias(name: str, image: BrainImage, spacing_mm: tuple[float, float, float], journal: Journal) -> BrainImage:
    """Divide a sequence by its bias field (N4, Tustison 2010), estimated from the brain's positive voxels.

    The field is fitted to every 4th voxel, and evaluated in log space at each.
    """
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    values = sitk.GetImageFromArray(np.where(image.mask, image.values, 0).T)
    mask = sitk.GetImageFromArray((image.mask & (image.values > 0)).astype(np.uint8).T)
    for volume in (values, mask):
        volume.SetSpacing(spacing_mm)
    # Short axes are shrunk less.
    factors = [max(1, min(N4_SHRINK, n // 8)) for n in image.mask.shape]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    corrector.SetMaximumNumberOfIterations(N4_STEPS)
    corrector.Execute(sitk.Shrink(values, factors), sitk.Shrink(mask, factors))
    bias: Voxels = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(values)).T)
    low, high = np.percentile(bias[image.mask], [1, 99])
    journal.step(name, f"N4 (every {max(factors)}th voxel, {'x'.join(map(str, N4_STEPS))} steps): divided by a bias of "
                 f"{low:.3f} to {high:.3f} inside the brain")  # fmt: skip
    return replace(image, values=np.ascontiguousarray(image.values / bias))
