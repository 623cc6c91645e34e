"""The similarity of two images of any contrasts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from multiseg.store.preparation.grids import Grid, resample
from multiseg.types import Mask

MAX_BINS = 32
COARSE_MM = 3.0
"""The voxel size for similarities: fine enough for anatomy, and fast."""


def normalised_mutual_information(a: Num[np.ndarray, " voxel"], b: Num[np.ndarray, " voxel"]) -> float:
    """(H(a) + H(b)) / H(a, b), between 1 (independent) and 2 (each determines the other).

    H are the entropies of equal bins between the 1st and the 99th percentile, and of their pairs (Studholme 1999,
    doi:10.1016/S0031-3203(98)00091-0). There are 32 bins, or fewer so that each pair has 25 voxels, since the value
    would be too high by chance. With a constant image it is 1.
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
    """The same box in voxels of at least this size, with orthogonal axes."""
    i, j, k = (max(mm, spacing_mm) for mm in grid.spacing_mm)
    return grid.orthonormal().respaced((i, j, k))


class Likeness:
    """The similarity of a reference image to others, on coarse voxels where the reference is not 0."""

    def __init__(self, voxels: Num[np.ndarray, "i j k"], grid: Grid) -> None:
        self.grid = coarse(grid)
        nonzero = (voxels != 0).astype(np.float32)
        self.inside: Mask = resample(nonzero, grid, self.grid, smooth=False) > 0.5
        self.values: Float[np.ndarray, " voxel"] = resample(voxels, grid, self.grid)[self.inside]

    def of(self, voxels: Num[np.ndarray, "i j k"], grid: Grid) -> float:
        """The similarity to another image on this grid."""
        return normalised_mutual_information(self.values, resample(voxels, grid, self.grid)[self.inside])
