"""Grids in space, and resampling images and labels from one grid to another."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Num, UInt8
from scipy import ndimage

from multiseg.store.formats.volumes import voxel_size_mm
from multiseg.store.preparation.boxes import Box, Vector, box_over, sizes, starts
from multiseg.store.preparation.interpolation import Matrix, contains, interpolate, shift_voxels, turn_axes, whole_shift
from multiseg.types import Affine, Codes, Index3, Mask, Voxels

Resampled: TypeAlias = Float[np.ndarray, "target_i target_j target_k"]
TIE = np.float32(1e-4)
"""Two shares of a voxel that differ by less are equal."""
SAME_SPACING = 1e-3
"""Voxel sizes that differ by less than this, relatively, are equal."""


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
        """The centre of the box in RAS+ mm."""
        centre: Float[np.ndarray, " 3"] = self.affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2) + self.affine[:3, 3]
        return centre

    def cropped(self, corner: Index3, shape: Index3) -> Grid:
        """The part of this shape whose first voxel is `corner`."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(corner)
        return Grid(affine, shape)

    def part(self, box: Box) -> Grid:
        """The part within a box of this grid's voxels."""
        return self.cropped(starts(box), sizes(box))

    def respaced(self, spacing_mm: tuple[float, float, float]) -> Grid:
        """The same box of space in voxels of another size, with the same centre; itself if the sizes agree."""
        old = np.asarray(self.spacing_mm)
        new = np.asarray(spacing_mm)
        if np.all(np.abs(old / new - 1) < SAME_SPACING):
            return self
        shape = np.maximum(1, np.rint(np.asarray(self.shape) * old / new))
        return self._about_centre(self.affine[:3, :3] / old * new, shape)

    def orthonormal(self) -> Grid:
        """The nearest grid with orthogonal axes, the same voxel size and the same centre; it contains this grid's box.

        With the affine's columns as D diag(spacing), its directions are the orthogonal factor of the polar
        decomposition of D.
        """
        spacing = np.asarray(self.spacing_mm)
        left, _, right = np.linalg.svd(self.affine[:3, :3] / spacing)
        directions = left @ right
        signs = np.array(list(itertools.product((-1, 1), repeat=3)))
        corners_mm = (signs * np.asarray(self.shape) / 2) @ self.affine[:3, :3].T
        reach = np.abs(corners_mm @ directions).max(axis=0)
        return self._about_centre(directions * spacing, np.ceil(2 * reach / spacing - 1e-3))

    def _about_centre(self, columns: Float[np.ndarray, "3 3"], shape: Num[np.ndarray, " 3"]) -> Grid:
        affine = np.eye(4)
        affine[:3, :3] = columns
        affine[:3, 3] = self.centre - columns @ ((shape - 1) / 2)
        return Grid(affine, (int(shape[0]), int(shape[1]), int(shape[2])))

    def voxel_map(self, target: Grid) -> tuple[Matrix, Vector]:
        """The matrix and offset that map voxel indices of `target` to indices of this grid."""
        combined = np.linalg.inv(self.affine) @ target.affine
        return combined[:3, :3], combined[:3, 3]

    def coverage(self, target: Grid) -> float:
        """The share of `target`'s box that is within this one, measured at 16^3 points."""
        axes = [np.linspace(0, n - 1, 16) for n in target.shape]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        matrix, offset = self.voxel_map(target)
        mapped = points @ matrix.T + offset
        inside = (mapped > -0.5) & (mapped < np.asarray(self.shape) - 0.5)
        return float(inside.all(axis=-1).mean())

    def contains(self, target: Grid) -> Mask:
        """Which voxels of `target` have their centre in this box, including its outer faces."""
        return contains(*self.voxel_map(target), self.shape, target.shape)

    def box_on(self, target: Grid, box: Box) -> Box | None:
        """The voxels of `target` that may touch a box of this grid's voxels; None if there are none."""
        matrix, offset = self.voxel_map(target)
        corners = np.array(list(itertools.product(*((part.start - 0.5, part.stop - 0.5) for part in box))))
        return box_over((corners - offset) @ np.linalg.inv(matrix).T, target.shape)

    def shares_lattice(self, target: Grid) -> bool:
        """Whether `resample` to `target` copies voxels without interpolation."""
        dummy, matrix, offset = turn_axes(np.broadcast_to(np.uint8(0), self.shape), *self.voxel_map(target))
        return whole_shift(matrix, offset, dummy.shape, target.shape) is not None


def resample(voxels: Voxels, source: Grid, target: Grid, smooth: bool = True) -> Resampled:
    """Resample an image to another grid by linear interpolation; 0 outside the source's box.

    If the target's voxels are larger, the image is smoothed first to avoid aliasing (Gaussian, standard deviation half
    the excess of the voxel ratio over 1, in source voxels), unless `smooth` is False, for masks. If the grids differ
    only by whole voxels and by the order and direction of their axes, values are copied unchanged.
    """
    view, matrix, offset = turn_axes(voxels, *source.voxel_map(target))
    shift = whole_shift(matrix, offset, view.shape, target.shape)
    if shift is not None:
        return shift_voxels(view, shift, target.shape, np.float32)
    excess = np.maximum(0.0, (np.linalg.norm(matrix, axis=1) - 1) / 2)
    sigma = np.where(excess > 0.05, excess, 0.0) if smooth else np.zeros(3)
    return interpolate(view, matrix, offset, target.shape, sigma)


def resample_codes(codes: Codes, source: Grid, target: Grid) -> UInt8[np.ndarray, "target_i target_j target_k"]:
    """Resample labels to another grid: each voxel gets the code with the largest linearly interpolated share.

    Equal shares are common if one voxel size is half or a multiple of the other. Then the higher code wins in every
    second voxel (i + j + k even), and the lower one (0 is background) in the others: always choosing one side would
    cost a patient's lesions up to 40% of their volume.

    Only the box around each code is resampled, so many small structures cost little. If nothing has to be
    interpolated, codes are copied.
    """
    view, matrix, offset = turn_axes(codes, *source.voxel_map(target))
    shift = whole_shift(matrix, offset, view.shape, target.shape)
    if shift is not None:
        return shift_voxels(view, shift, target.shape, np.uint8)
    best = np.zeros(target.shape, dtype=np.float32)
    total = np.zeros(target.shape, dtype=np.float32)
    winner = np.zeros(target.shape, dtype=np.uint8)
    i, j, k = np.ogrid[tuple(slice(n) for n in target.shape)]
    handicap = np.where((i + j + k) % 2 == 0, -TIE, TIE).astype(np.float32)
    for code, box in enumerate(ndimage.find_objects(codes), start=1):
        if box is None:
            continue
        # A margin of 4 voxels, more than interpolation needs.
        box = tuple(slice(max(0, s.start - 4), min(n, s.stop + 4)) for s, n in zip(box, codes.shape, strict=True))
        region = source.box_on(target, box)
        if region is None:
            continue
        share = resample((codes[box] == code).astype(np.float32), source.part(box), target.part(region), smooth=False)
        is_larger = share > best[region] + handicap[region]
        winner[region][is_larger] = code
        best[region][is_larger] = share[is_larger]
        total[region] += share
    # Background competes with what is left of the share.
    winner[1 - total > best - handicap] = 0
    return winner


def sample_foreground(
    codes: UInt8[np.ndarray, "i j k"], num_structures: int, num_points: int, seed: int
) -> tuple[Num[np.ndarray, " structure"], Num[np.ndarray, "structure point 3"]]:
    """Count the voxels of each structure (codes 1..n), and draw up to `num_points` of each at random; -1 pads."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(codes.ravel(), minlength=256)[1 : num_structures + 1].astype(np.int64)
    points = np.full((num_structures, num_points, 3), -1, dtype=np.int16)
    for index, box in enumerate(ndimage.find_objects(codes, num_structures)):
        if box is None:
            continue
        voxels = np.argwhere(codes[box] == index + 1) + np.asarray(starts(box))
        if len(voxels) > num_points:
            voxels = voxels[np.sort(rng.choice(len(voxels), num_points, replace=False))]
        points[index, : len(voxels)] = voxels
    return counts, points
