"""Grids in space, and bringing images and labels from one to another through the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Num, UInt8
from scipy import ndimage

from multiseg.store.formats.volumes import voxel_size_mm
from multiseg.store.preparation.boxes import Box, sizes, starts
from multiseg.store.preparation.interpolation import Matrix, Vector, copied, holds, interpolated, turned, whole_shift
from multiseg.types import Affine, Codes, Index3, Mask, Voxels

Resampled: TypeAlias = Float[np.ndarray, "target_i target_j target_k"]
"""An image on another grid than its source's."""
TIE = np.float32(1e-4)
"""Two shares of a voxel that are nearer to each other than this are equal."""
SAME_SPACING = 1e-3
"""A relative difference of voxel size below which nothing is resampled."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels in space: its affine (voxel indices to RAS+ mm) and its shape."""

    affine: Affine
    shape: Index3

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return voxel_size_mm(self.affine)

    @property
    def centre(self) -> Float[np.ndarray, " 3"]:
        """The middle of the box in RAS+ mm."""
        middle: Float[np.ndarray, " 3"] = self.affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2) + self.affine[:3, 3]
        return middle

    def cropped(self, corner: Index3, shape: Index3) -> Grid:
        """The part that begins at voxel `corner`."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(corner)
        return Grid(affine, shape)

    def part(self, box: Box) -> Grid:
        """The part that a box of its voxels fills."""
        return self.cropped(starts(box), sizes(box))

    def respaced(self, spacing_mm: tuple[float, float, float]) -> Grid:
        """The same box of space in voxels of another size, about the same centre; itself when they agree."""
        old = np.asarray(self.spacing_mm)
        new = np.asarray(spacing_mm)
        if np.all(np.abs(old / new - 1) < SAME_SPACING):
            return self
        shape = np.maximum(1, np.rint(np.asarray(self.shape) * old / new))
        return self._about_centre(self.affine[:3, :3] / old * new, shape)

    def orthonormal(self) -> Grid:
        """The nearest grid whose axes are at right angles, of the same voxel size and about the same centre.

        With the affine's columns as D diag(spacing), its directions are the orthogonal factor of D's polar
        decomposition; its box holds the whole of this one.
        """
        spacing = np.asarray(self.spacing_mm)
        left, _, right = np.linalg.svd(self.affine[:3, :3] / spacing)
        directions = left @ right
        signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
        corners_mm = (signs * np.asarray(self.shape) / 2) @ self.affine[:3, :3].T
        reach = np.abs(corners_mm @ directions).max(axis=0)
        return self._about_centre(directions * spacing, np.ceil(2 * reach / spacing - 1e-3))

    def _about_centre(self, columns: Float[np.ndarray, "3 3"], shape: Num[np.ndarray, " 3"]) -> Grid:
        affine = np.eye(4)
        affine[:3, :3] = columns
        affine[:3, 3] = self.centre - columns @ ((shape - 1) / 2)
        return Grid(affine, (int(shape[0]), int(shape[1]), int(shape[2])))

    def voxel_map(self, target: Grid) -> tuple[Matrix, Vector]:
        """Matrix and offset that take voxel indices of `target` to indices of this grid."""
        both = np.linalg.inv(self.affine) @ target.affine
        return both[:3, :3], both[:3, 3]

    def coverage(self, target: Grid) -> float:
        """The share of `target`'s box that this box holds, from a lattice of 16^3 points."""
        at = [np.linspace(0, n - 1, 16) for n in target.shape]
        points = np.stack(np.meshgrid(*at, indexing="ij"), axis=-1)
        matrix, offset = self.voxel_map(target)
        mapped = points @ matrix.T + offset
        inside = (mapped > -0.5) & (mapped < np.asarray(self.shape) - 0.5)
        return float(inside.all(axis=-1).mean())

    def holds(self, target: Grid) -> Mask:
        """Which voxels of `target` have their centre in this box, its outer faces included."""
        return holds(*self.voxel_map(target), self.shape, target.shape)

    def box_on(self, target: Grid, box: Box) -> Box | None:
        """The voxels of `target` that may touch a box of this grid's voxels, or None when there are none."""
        matrix, offset = self.voxel_map(target)
        corners = np.array([[i, j, k] for i in _faces(box[0]) for j in _faces(box[1]) for k in _faces(box[2])])
        mapped = (corners - offset) @ np.linalg.inv(matrix).T
        low = np.maximum(np.floor(mapped.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(mapped.max(axis=0)).astype(int) + 1, np.asarray(target.shape))
        if np.any(high <= low):
            return None
        i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return i, j, k

    def shares_lattice(self, target: Grid) -> bool:
        """Whether `resample` to `target` copies voxel for voxel."""
        none, matrix, offset = turned(np.broadcast_to(np.uint8(0), self.shape), *self.voxel_map(target))
        return whole_shift(matrix, offset, none.shape, target.shape) is not None


def _faces(part: slice) -> tuple[float, float]:
    return part.start - 0.5, part.stop - 0.5


def resample(voxels: Voxels, source: Grid, target: Grid, smooth: bool = True) -> Resampled:
    """An image on another grid: linear interpolation, 0 outside the source's box.

    Where the target's voxels are larger, the image is smoothed first (Gaussian, standard deviation half
    the excess of the voxel ratio over 1, in source voxels) so that fine detail does not alias; not with
    `smooth=False`, for masks. Where the grids differ by whole voxels and by the order and direction of
    their axes only, values are copied unchanged.
    """
    view, matrix, offset = turned(voxels, *source.voxel_map(target))
    shift = whole_shift(matrix, offset, view.shape, target.shape)
    if shift is not None:
        return copied(view, shift, target.shape, np.float32)
    excess = np.maximum(0.0, (np.linalg.norm(matrix, axis=1) - 1) / 2)
    sigma = np.where(excess > 0.05, excess, 0.0) if smooth else np.zeros(3)
    return interpolated(view, matrix, offset, target.shape, sigma)


def resample_codes(codes: Codes, source: Grid, target: Grid) -> UInt8[np.ndarray, "target_i target_j target_k"]:
    """Labels on another grid: each voxel takes the code with the largest linearly interpolated share.

    Equal shares are common where one voxel size is a half or a whole multiple of the other. Then the
    higher code wins in every second voxel (i + j + k even) and the lower one, 0 for background, in the
    others: always choosing one side would cost the lesions of a patient up to 40% of their volume.

    Only the box around each code is looked at, so many small structures cost little. Where nothing has to
    be interpolated, codes are copied.
    """
    view, matrix, offset = turned(codes, *source.voxel_map(target))
    shift = whole_shift(matrix, offset, view.shape, target.shape)
    if shift is not None:
        return copied(view, shift, target.shape, np.uint8)
    best = np.zeros(target.shape, dtype=np.float32)
    total = np.zeros(target.shape, dtype=np.float32)
    winner = np.zeros(target.shape, dtype=np.uint8)
    i, j, k = np.ogrid[tuple(slice(n) for n in target.shape)]
    handicap = np.where((i + j + k) % 2 == 0, -TIE, TIE).astype(np.float32)
    for code, box in enumerate(ndimage.find_objects(codes), start=1):
        if box is None:
            continue
        box = tuple(slice(max(0, s.start - 4), min(n, s.stop + 4)) for s, n in zip(box, codes.shape, strict=True))
        region = source.box_on(target, box)
        if region is None:
            continue
        share = resample((codes[box] == code).astype(np.float32), source.part(box), target.part(region), smooth=False)
        ahead = share > best[region] + handicap[region]
        winner[region][ahead] = code
        best[region][ahead] = share[ahead]
        total[region] += share
    winner[1 - total > best - handicap] = 0
    return winner


def sample_foreground(
    codes: UInt8[np.ndarray, "i j k"], num_structures: int, num_points: int, seed: int
) -> tuple[Num[np.ndarray, " structure"], Num[np.ndarray, "structure point 3"]]:
    """How many voxels each structure (codes 1..n) has, and up to `num_points` of them at random; -1 pads."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(codes.ravel(), minlength=256)[1 : num_structures + 1].astype(np.int64)
    points = np.full((num_structures, num_points, 3), -1, dtype=np.int16)
    for at, box in enumerate(ndimage.find_objects(codes, num_structures)):
        if box is None:
            continue
        found = np.argwhere(codes[box] == at + 1) + np.asarray(starts(box))
        if len(found) > num_points:
            found = found[np.sort(rng.choice(len(found), num_points, replace=False))]
        points[at, : len(found)] = found
    return counts, points
