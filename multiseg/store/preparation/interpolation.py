"""Linear interpolation between grids, given the map from target indices to source indices."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import DTypeLike
from scipy import ndimage, sparse

from multiseg.store.preparation.boxes import Vector, box_over
from multiseg.types import Index3, Mask, Voxels

Interpolated: TypeAlias = Float[np.ndarray, "target_i target_j target_k"]
Matrix: TypeAlias = Float[np.ndarray, "3 3"]
NEAR = 1e-2
"""The most, in voxels, that any voxel of two equal lattices may differ."""
FACE = 0.5 + 1e-3
"""Half the width of a voxel, in voxels, with a tolerance."""


def turn_axes(
    voxels: Voxels, matrix: Matrix, offset: Vector
) -> tuple[Num[np.ndarray, "turned_i turned_j turned_k"], Matrix, Vector]:
    """Permute and flip axes to run along the target's; returns the view and the map to it."""
    strongest = [int(np.argmax(np.abs(row))) for row in matrix]
    if sorted(strongest) != [0, 1, 2]:  # the axes do not correspond one to one
        return voxels, matrix, offset
    order = np.argsort(strongest)
    voxels, matrix, offset = voxels.transpose(order), matrix[order].copy(), offset[order].copy()
    for axis in range(3):
        if matrix[axis, axis] < 0:
            voxels = np.flip(voxels, axis)
            matrix[axis] *= -1
            offset[axis] = voxels.shape[axis] - 1 - offset[axis]
    return voxels, matrix, offset


def whole_shift(matrix: Matrix, offset: Vector, source: Index3, target: Index3) -> Int[np.ndarray, " 3"] | None:
    """The shift in whole voxels between two grids of the same lattice; None if the lattices differ."""
    shift = np.rint(offset).astype(int)
    is_same = np.abs(matrix - np.eye(3)).max() * max(*source, *target) < NEAR and np.abs(offset - shift).max() < NEAR
    return shift if is_same else None


def shift_voxels(
    voxels: Voxels, shift: Int[np.ndarray, " 3"], shape: Index3, dtype: DTypeLike
) -> Num[np.ndarray, "target_i target_j target_k"]:
    """Copy the voxels from index `shift` on; 0 beyond them."""
    target = np.zeros(shape, dtype=dtype)
    take, put = [], []
    for s, n, size in zip(shift, voxels.shape, shape, strict=True):
        start, stop = max(0, s), min(n, s + size)
        take.append(slice(start, max(start, stop)))
        put.append(slice(start - s, max(start, stop) - s))
    target[tuple(put)] = voxels[tuple(take)]
    return target


def interpolate(voxels: Voxels, matrix: Matrix, offset: Vector, shape: Index3, sigma: Vector) -> Interpolated:
    """The values at `matrix @ index + offset`, after smoothing by a Gaussian of `sigma` source voxels; 0 outside.

    Only the part of the source that the target needs is processed.
    """
    part = box_over(_corners(shape) @ matrix.T + offset, voxels.shape, 2 + np.ceil(3 * sigma))
    if part is None:
        return np.zeros(shape, dtype=np.float32)
    image = np.ascontiguousarray(voxels[part], dtype=np.float32)
    diagonal = np.diag(matrix)
    if np.abs(matrix - np.diag(diagonal)).max() * max(*voxels.shape, *shape) < NEAR:
        positions = [step * np.arange(n) + first for step, first, n in zip(diagonal, offset, shape, strict=True)]
        axes = zip(positions, part, voxels.shape, sigma.tolist(), strict=True)
        return _along_axes(image, [_weights(*axis) for axis in axes])
    smoothed = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    values = _apply_affine(smoothed, matrix, offset - [axis.start for axis in part], shape)
    values[~contains(matrix, offset, voxels.shape, shape)] = 0
    return values


def contains(matrix: Matrix, offset: Vector, source: Index3, target: Index3) -> Mask:
    """Which voxels of the target have their centre within the outer faces of the source."""
    corners = _corners(target) @ matrix.T + offset
    if np.all((corners >= -FACE) & (corners <= np.asarray(source) - 1 + FACE)):
        return np.ones(target, dtype=bool)
    i, j, k = np.ogrid[tuple(slice(n) for n in target)]
    inside = np.ones(target, dtype=bool)
    for row, start, size in zip(matrix, offset, source, strict=True):
        position = row[0] * i + row[1] * j + row[2] * k + start
        inside &= (position >= -FACE) & (position <= size - 1 + FACE)
    return inside


def _corners(shape: Index3) -> Int[np.ndarray, "8 3"]:
    """The indices of the corners of an array."""
    return np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)


def _weights(positions: Float[np.ndarray, " target"], part: slice, num_whole: int, sigma: float) -> sparse.csr_array:
    """The weight of each voxel of one axis at each position: smoothing and interpolation in one matrix."""
    num = part.stop - part.start
    nearest = np.clip(positions - part.start, 0, num - 1)
    low = np.minimum(nearest.astype(int), max(0, num - 2))
    rows = np.arange(len(positions))
    weights = np.zeros((len(positions), num))
    weights[rows, low] = 1 - (nearest - low)
    weights[rows, np.minimum(low + 1, num - 1)] += nearest - low
    weights[(positions < -FACE) | (positions > num_whole - 1 + FACE)] = 0
    if sigma > 0:
        weights = sparse.csr_array(weights) @ ndimage.gaussian_filter1d(
            np.eye(num), sigma, axis=0, mode="nearest", truncate=3.0
        )
    return sparse.csr_array(weights.astype(np.float32))


def _along_axes(image: Voxels, weights: list[sparse.csr_array]) -> Interpolated:
    """Interpolate along each axis in turn, first along the one that shrinks most.

    The weights are sparse matrices, since the sums of dense products depend on the number of threads, and thus on the
    computer.
    """
    for axis in sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1]):
        i, j, k = image.shape
        match axis:
            case 0:
                image = (weights[0] @ image.reshape(i, j * k)).reshape(-1, j, k)
            case 1:
                image = np.stack([weights[1] @ plane for plane in image])
            case _:
                image = np.stack([(weights[2] @ plane.T).T for plane in image])
    return image


def _apply_affine(image: Voxels, matrix: Matrix, offset: Vector, shape: Index3) -> Interpolated:
    """Linear interpolation through any affine; the outermost voxels are extended outwards."""
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    transform = sitk.AffineTransform(3)
    # SimpleITK's axes are in reverse order.
    transform.SetMatrix(matrix[::-1, ::-1].ravel().tolist())
    transform.SetTranslation(offset[::-1].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(shape[::-1])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.UseNearestNeighborExtrapolatorOn()
    resampler.SetNumberOfThreads(1)
    values: Interpolated = sitk.GetArrayFromImage(resampler.Execute(sitk.GetImageFromArray(image)))
    return values
