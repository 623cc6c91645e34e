"""How much two images say about each other, whatever their contrasts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from multiseg.store.preparation.grids import Grid, resample
from multiseg.types import Mask

MAX_BINS = 32
COARSE_MM = 3.0
"""Voxels that similarities are told on: fine enough for anatomy, and quick."""


def normalised_mutual_information(a: Num[np.ndarray, " voxel"], b: Num[np.ndarray, " voxel"]) -> float:
    """(H(a) + H(b)) / H(a, b), between 1 (nothing in common) and 2 (each tells the other).

    H are the entropies of equal bins between the 1st and the 99th percentile, and of their pairs (Studholme
    1999, doi:10.1016/S0031-3203(98)00091-0); 32 bins, fewer where there are not 25 voxels a pair, which
    would have something in common by chance. Constant images have nothing in common with any.
    """
    bins = int(np.clip(np.sqrt(a.size / 25), 2, MAX_BINS))
    joint = np.bincount(_bins(a, bins) * bins + _bins(b, bins), minlength=bins**2).reshape(bins, bins)
    pairs, first, second = (_entropy(counts) for counts in (joint, joint.sum(axis=1), joint.sum(axis=0)))
    return (first + second) / pairs if pairs > 0 else 1.0


def _bins(values: Num[np.ndarray, " voxel"], num_bins: int) -> Num[np.ndarray, " voxel"]:
    low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 0.0)
    if high <= low:
        return np.zeros(values.shape, dtype=np.int64)
    share = (values.astype(np.float64) - low) / (high - low)
    return np.clip(share * num_bins, 0, num_bins - 1).astype(np.int64)


def _entropy(counts: Num[np.ndarray, "..."]) -> float:
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())


def coarse(grid: Grid, spacing_mm: float = COARSE_MM) -> Grid:
    """The same box in voxels of at least this size, at right angles."""
    i, j, k = (max(own, spacing_mm) for own in grid.spacing_mm)
    return grid.orthonormal().respaced((i, j, k))


class Likeness:
    """The similarity of a reference image to others, on coarse voxels within the reference's non-zero ones."""

    def __init__(self, voxels: Num[np.ndarray, "i j k"], grid: Grid) -> None:
        self.grid = coarse(grid)
        nonzero = (voxels != 0).astype(np.float32)
        self.inside: Mask = resample(nonzero, grid, self.grid, smooth=False) > 0.5
        self.values: Float[np.ndarray, " voxel"] = resample(voxels, grid, self.grid)[self.inside]

    def of(self, voxels: Num[np.ndarray, "i j k"], grid: Grid) -> float:
        """With another image where `grid` puts it."""
        return normalised_mutual_information(self.values, resample(voxels, grid, self.grid)[self.inside])
