"""Intensities inside the brain: bias field out, contrasts made alike, and stored in float16."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import Box
from multiseg.store.preparation.brain import Located
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.recipe import PERCENTILES, Recipe
from multiseg.types import Mask, Voxels

LEAST_SPREAD = 0.02
"""Of the middle 98% of a brain's values, in standard deviations: healthy scans have 3 to 6."""
FARTHEST = 10
"""Beyond the middle 98%, in widths of it: 106 scans of nine databases reach 3.9, a flipped bit 30 or more."""
LIMIT = 60_000
"""Scores beyond it do not fit float16; only damaged images have any."""
N4_SHRINK, N4_STEPS = 4, (50, 50, 50, 50)
SLAB = 1 << 14
"""Voxels that are brought onto the standard scale at once, in float64: all at once are five times the image."""
LARGEST_ROUNDING = 0.01
"""Of the standard deviation: how much raw values may lose in float16."""


@dataclass(frozen=True, eq=False)
class Normalised:
    """A sequence as it is stored, 0 outside its brain; raw intensity is `voxels * std + mean`.

    Raw means: after N4 where the recipe has it, and on the standard scale for "histogram", from which
    `details` ("percentiles" of the case and their "landmarks") lead back: `standardised` the other way.
    """

    box: Box
    voxels: Float[np.ndarray, "i j k"]
    mask: Mask
    mean: float
    std: float
    details: dict[str, Any] = field(default_factory=dict)


def normalised(name: str, volume: Volume, place: Located, recipe: Recipe, journal: Journal) -> Normalised:
    """A sequence's values as the recipe wants them (z-scores: Xu et al. 2024, appendix A).

    Raises:
        SourceError: raw values do not fit float16, there are no landmarks for the sequence, or a few voxels are
            so extreme that the others would become one value.
    """
    values = place.values[place.mask]
    _check_extremes(name, volume, values, journal)
    outside = place.outside
    details: dict[str, Any] = {}
    if recipe.normalise == "histogram":
        percentiles, landmarks = _scales(name, volume, values, recipe)
        values = standardised(values, percentiles, landmarks)
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
        journal.step(
            name, f"z-score inside the brain ({values.size} voxels: mean {mean:.6g}, std {std:.6g}), 0 outside"
        )
    voxels = np.zeros(place.mask.shape, dtype=np.float16)
    voxels[place.mask] = stored
    return Normalised(place.box, voxels, place.mask, mean, std, details)


def _check_extremes(name: str, volume: Volume, values: Num[np.ndarray, " voxel"], journal: Journal) -> None:
    """A z-score in float16 keeps nothing of the brain where one wild voxel sets the standard deviation.

    One flipped bit does less than that, but shows in the scan's own voxels, whatever resampling leaves of it.
    """
    low, high = (float(value) for value in np.percentile(values[:: max(1, values.size // 100_000)], (1, 99)))
    std = float(values.std(dtype=np.float64))
    if high - low < LEAST_SPREAD * std:
        raise SourceError(
            f"{name} ({volume.path}): 98% of the brain lies between {low + volume.outside:.6g} and "
            f"{high + volume.outside:.6g}, but values go from {float(values.min()) + volume.outside:.6g} to "
            f"{float(values.max()) + volume.outside:.6g}. Such voxels are errors of a conversion: repair "
            "them, or export the scan again.",
            code="EXTREME_VALUES",
            file=str(volume.path),
        )
    # The file's own voxels: resampling makes noise, and so the width of the middle, smaller.
    own = volume.voxels[volume.voxels != 0]
    low, high = (float(value) for value in np.percentile(own[:: max(1, own.size // 100_000)], (1, 99)))
    far = FARTHEST * (high - low)
    num_above, num_below = np.count_nonzero(own > high + far), np.count_nonzero(own < low - far)
    num = num_above + num_below
    if num:
        wildest = float(own.max() if num_above else own.min()) + volume.outside
        journal.warn("OUTLIERS", f"{name} ({volume.path.name}): voxels far from all others ({num}), up to "
                     f"{wildest:.6g}, where 98% of them lie between {low + volume.outside:.6g} and "
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
    lost = float(np.sqrt(np.mean((stored.astype(np.float64) - values) ** 2))) if np.isfinite(stored).all() else np.inf
    if lost > LARGEST_ROUNDING * std:
        why = (
            f"up to {peak:.4g} (float16 ends at 65504)"
            if np.isinf(lost)
            else f"rounded by {lost / std:.1%} of their spread"
        )
        raise SourceError(
            f"{name} ({volume.path}) holds raw values that do not fit the store's float16: {why}. "
            "Use --normalise zscore, or rescale the images.",
            code="NOT_FLOAT16",
            file=str(volume.path),
        )
    return stored


def _scales(
    name: str, volume: Volume, values: Num[np.ndarray, " voxel"], recipe: Recipe
) -> tuple[list[float], list[float]]:
    """The case's percentiles and the landmarks that they go to, both strictly rising."""
    if name not in recipe.landmarks:
        raise SourceError(
            f"{name} ({volume.path}) has no landmarks: none of the cases that they were learnt from has it. Learn "
            "them from cases with every sequence, or use --normalise zscore.",
            code="NO_LANDMARKS",
            file=str(volume.path),
        )
    pairs: list[tuple[float, float]] = []
    for own, landmark in zip(percentiles_of(values), recipe.landmarks[name], strict=True):
        if not pairs or (own > pairs[-1][0] and landmark > pairs[-1][1]):
            pairs.append((own, landmark))
    if len(pairs) < 2:
        message = f"{name} ({volume.path}) has one value in most of the brain, so its histogram has no landmarks."
        raise SourceError(message, code="CONSTANT_IMAGE", file=str(volume.path))
    return [own for own, _ in pairs], [landmark for _, landmark in pairs]


def percentiles_of(values: Num[np.ndarray, " voxel"]) -> tuple[float, ...]:
    """The `PERCENTILES` of the brain's values."""
    return tuple(float(value) for value in np.percentile(values, PERCENTILES))


def standardised(
    values: Num[np.ndarray, "*shape"], percentiles: list[float], landmarks: list[float]
) -> Float[np.ndarray, "*shape"]:
    """Values on the standard scale: straight lines from each percentile to its landmark (Nyul & Udupa 2000).

    Beyond the first and the last the outermost lines go on. Both must rise strictly; with the two lists
    exchanged it leads back.
    """
    x, y = np.asarray(percentiles, dtype=np.float64), np.asarray(landmarks, dtype=np.float64)
    slopes = np.diff(y) / np.diff(x)
    flat = values.ravel()
    scaled = np.empty(flat.shape, dtype=np.float32)
    for start in range(0, flat.size, SLAB):
        some = flat[start : start + SLAB]
        at = np.clip(np.searchsorted(x, some, side="right") - 1, 0, len(slopes) - 1)
        scaled[start : start + SLAB] = y[at] + slopes[at] * (some - x[at])
    return scaled.reshape(values.shape)


def _list(numbers: list[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


def without_bias(name: str, place: Located, spacing_mm: tuple[float, float, float], journal: Journal) -> Located:
    """The sequence with its bias field divided out (N4, Tustison 2010), told from the brain's positive voxels.

    The field is fitted on every 4th voxel and evaluated in log space on each.
    """
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    image = sitk.GetImageFromArray(np.where(place.mask, place.values, 0).T)
    mask = sitk.GetImageFromArray((place.mask & (place.values > 0)).astype(np.uint8).T)
    for one in (image, mask):
        one.SetSpacing(spacing_mm)
    # Axes of a few voxels cannot be shrunk.
    factors = [max(1, min(N4_SHRINK, n // 8)) for n in place.mask.shape]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    corrector.SetMaximumNumberOfIterations(N4_STEPS)
    corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
    bias: Voxels = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).T)
    low, high = np.percentile(bias[place.mask], [1, 99])
    journal.step(name, f"N4 (every {max(factors)}th voxel, {'x'.join(map(str, N4_STEPS))} steps): divided by a bias of "
                 f"{low:.3f} to {high:.3f} inside the brain")  # fmt: skip
    return replace(place, values=np.ascontiguousarray(place.values / bias))
