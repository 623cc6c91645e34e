"""Voxel grids in space, and bringing images and labels from one to another through the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Num, UInt8
from scipy import ndimage

from multiseg.store.volumes import voxel_size_mm
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

    def cropped(self, corner: Index3, shape: Index3) -> Grid:
        """The part that begins at voxel `corner`."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(corner)
        return Grid(affine, shape)

    def respaced(self, spacing_mm: tuple[float, float, float]) -> Grid:
        """The same box of space in voxels of another size, about the same centre; itself when they agree."""
        old = np.asarray(self.spacing_mm)
        new = np.asarray(spacing_mm)
        if np.all(np.abs(old / new - 1) < SAME_SPACING):
            return self
        shape = np.maximum(1, np.rint(np.asarray(self.shape) * old / new)).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] / old * new
        centre = self.affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2) + self.affine[:3, 3]
        affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid(affine, (int(shape[0]), int(shape[1]), int(shape[2])))

    def voxel_map(self, target: Grid) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, 3]]:
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


def resample(voxels: Voxels, source: Grid, target: Grid, smooth: bool = True) -> Resampled:
    """An image on another grid: linear interpolation, 0 outside the source's box.

    Where the target's voxels are larger, the image is smoothed first (Gaussian, standard deviation half
    the excess of the voxel ratio over 1, in source voxels) so that fine detail does not alias; not with
    `smooth=False`, for masks. Where the grids differ by whole voxels only, values are copied unchanged.
    """
    matrix, offset = source.voxel_map(target)
    shift = np.rint(offset).astype(int)
    reach = max(*source.shape, *target.shape)
    if np.abs(matrix - np.eye(3)).max() * reach < 1e-2 and np.abs(offset - shift).max() < 1e-2:
        return _shifted(voxels, shift, target.shape)
    ratio = np.linalg.norm(matrix, axis=1)
    sigma = np.maximum(0.0, (ratio - 1) / 2)
    image = voxels.astype(np.float32, copy=False)
    if smooth and sigma.max() > 0.05:
        image = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    moved = np.empty(target.shape, dtype=np.float32)
    diagonal = np.diag(matrix)
    if np.abs(matrix - np.diag(diagonal)).max() * reach < 1e-2:
        # A 1-D matrix takes scipy's faster separable path.
        ndimage.affine_transform(image, diagonal, offset, target.shape, moved, order=1, mode="nearest")
    else:
        ndimage.affine_transform(image, matrix, offset, target.shape, moved, order=1, mode="nearest")
    _clear_outside(moved, matrix, offset, source.shape)
    return moved


def _shifted(voxels: Voxels, shift: Num[np.ndarray, 3], shape: Index3) -> Resampled:
    moved = np.zeros(shape, dtype=np.float32)
    take, put = [], []
    for s, n, size in zip(shift, voxels.shape, shape, strict=True):
        start, stop = max(0, s), min(n, s + size)
        take.append(slice(start, max(start, stop)))
        put.append(slice(start - s, max(start, stop) - s))
    moved[tuple(put)] = voxels[tuple(take)]
    return moved


def _clear_outside(
    image: Float[np.ndarray, "i j k"],
    matrix: Float[np.ndarray, "3 3"],
    offset: Float[np.ndarray, 3],
    source_shape: Index3,
) -> None:
    """Set to 0, in place, what maps beyond the outer faces of the source's voxels."""
    i, j, k = (np.arange(n, dtype=np.float32) for n in image.shape)
    for row, start, size in zip(matrix, offset, source_shape, strict=True):
        at = row[0] * i[:, None, None] + row[1] * j[None, :, None] + row[2] * k[None, None, :] + start
        image[(at < -0.5 - 1e-3) | (at > size - 0.5 + 1e-3)] = 0


def resample_codes(codes: Codes, source: Grid, target: Grid) -> UInt8[np.ndarray, "target_i target_j target_k"]:
    """Labels on another grid: each voxel takes the code with the largest linearly interpolated share.

    Equal shares are common where one voxel size is a half or a whole multiple of the other. Then the
    higher code wins in every second voxel (i + j + k even) and the lower one, 0 for background, in the
    others: always choosing one side would cost the lesions of a patient up to 40% of their volume.

    Only the box around each code is looked at, so many small structures cost little.
    """
    matrix, offset = source.voxel_map(target)
    best = np.zeros(target.shape, dtype=np.float32)
    total = np.zeros(target.shape, dtype=np.float32)
    winner = np.zeros(target.shape, dtype=np.uint8)
    i, j, k = np.ogrid[tuple(slice(n) for n in target.shape)]
    handicap = np.where((i + j + k) % 2 == 0, -TIE, TIE).astype(np.float32)
    for code, box in enumerate(ndimage.find_objects(codes), start=1):
        if box is None:
            continue
        box = tuple(slice(max(0, s.start - 4), min(n, s.stop + 4)) for s, n in zip(box, codes.shape, strict=True))
        region = _image_of_box(box, matrix, offset, target.shape)
        if region is None:
            continue
        part_source = source.cropped(_starts(box), _sizes(box))
        part_target = target.cropped(_starts(region), _sizes(region))
        share = resample((codes[box] == code).astype(np.float32), part_source, part_target, smooth=False)
        ahead = share > best[region] + handicap[region]
        winner[region][ahead] = code
        best[region][ahead] = share[ahead]
        total[region] += share
    winner[1 - total > best - handicap] = 0
    return winner


def _image_of_box(
    box: tuple[slice, ...],
    matrix: Float[np.ndarray, "3 3"],
    offset: Float[np.ndarray, 3],
    shape: Index3,
) -> tuple[slice, slice, slice] | None:
    """The voxels of the target that may touch a box of the source, or None when there are none."""
    corners = np.array([[i, j, k] for i in _ends(box[0]) for j in _ends(box[1]) for k in _ends(box[2])])
    mapped = (corners - offset) @ np.linalg.inv(matrix).T
    low = np.maximum(np.floor(mapped.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(mapped.max(axis=0)).astype(int) + 1, np.asarray(shape))
    if np.any(high <= low):
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def _ends(part: slice) -> tuple[float, float]:
    return part.start - 0.5, part.stop - 0.5


def _starts(box: tuple[slice, ...]) -> Index3:
    i, j, k = (int(part.start) for part in box)
    return i, j, k


def _sizes(box: tuple[slice, ...]) -> Index3:
    i, j, k = (int(part.stop - part.start) for part in box)
    return i, j, k


def bounding_box(mask: Mask) -> tuple[Index3, Index3]:
    """Corner and shape of the smallest box around a mask's voxels; one voxel at 0 for an empty mask."""
    objects = ndimage.find_objects(mask.astype(np.uint8))
    if not objects or objects[0] is None:
        return (0, 0, 0), (1, 1, 1)
    return _starts(objects[0]), _sizes(objects[0])


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
        found = np.argwhere(codes[box] == at + 1) + np.asarray(_starts(box))
        if len(found) > num_points:
            found = found[np.sort(rng.choice(len(found), num_points, replace=False))]
        points[at, : len(found)] = found
    return counts, points
