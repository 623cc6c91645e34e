"""Linear interpolation between two lattices, from the map of target indices to source indices alone."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import DTypeLike
from scipy import ndimage, sparse

from multiseg.store.preparation.boxes import Box
from multiseg.types import Index3, Mask, Voxels

Interpolated: TypeAlias = Float[np.ndarray, "target_i target_j target_k"]
Matrix: TypeAlias = Float[np.ndarray, "3 3"]
Vector: TypeAlias = Float[np.ndarray, " 3"]
NEAR = 1e-2
"""Of a voxel: what the farthest voxel may be off for two lattices to count as one."""
FACE = 0.5 + 1e-3
"""How far from its centre a voxel still reaches, in voxels."""


def turned(
    voxels: Voxels, matrix: Matrix, offset: Vector
) -> tuple[Num[np.ndarray, "turned_i turned_j turned_k"], Matrix, Vector]:
    """A view of the voxels whose axes run along the target's, and the map to it."""
    strongest = [int(np.argmax(np.abs(row))) for row in matrix]
    if sorted(strongest) != [0, 1, 2]:  # no axis of the one belongs to an axis of the other
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
    """By how many whole voxels two grids of one lattice differ; None when they have none in common."""
    shift = np.rint(offset).astype(int)
    same = np.abs(matrix - np.eye(3)).max() * max(*source, *target) < NEAR and np.abs(offset - shift).max() < NEAR
    return shift if same else None


def copied(
    voxels: Voxels, shift: Int[np.ndarray, " 3"], shape: Index3, dtype: DTypeLike
) -> Num[np.ndarray, "target_i target_j target_k"]:
    """The voxels from index `shift` on, 0 beyond them."""
    moved = np.zeros(shape, dtype=dtype)
    take, put = [], []
    for s, n, size in zip(shift, voxels.shape, shape, strict=True):
        start, stop = max(0, s), min(n, s + size)
        take.append(slice(start, max(start, stop)))
        put.append(slice(start - s, max(start, stop) - s))
    moved[tuple(put)] = voxels[tuple(take)]
    return moved


def interpolated(voxels: Voxels, matrix: Matrix, offset: Vector, shape: Index3, sigma: Vector) -> Interpolated:
    """The values at `matrix @ index + offset`, smoothed by a Gaussian of `sigma` source voxels before; 0 outside.

    Only the part of the source that the target needs is looked at.
    """
    part = _needed(matrix, offset, sigma, voxels.shape, shape)
    if part is None:
        return np.zeros(shape, dtype=np.float32)
    image = np.ascontiguousarray(voxels[part], dtype=np.float32)
    diagonal = np.diag(matrix)
    if np.abs(matrix - np.diag(diagonal)).max() * max(*voxels.shape, *shape) < NEAR:
        places = [step * np.arange(n) + first for step, first, n in zip(diagonal, offset, shape, strict=True)]
        axes = zip(places, part, voxels.shape, sigma.tolist(), strict=True)
        return _along_axes(image, [_weights(*axis) for axis in axes])
    smoothed = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    moved = _through(smoothed, matrix, offset - [one.start for one in part], shape)
    moved[~holds(matrix, offset, voxels.shape, shape)] = 0
    return moved


def holds(matrix: Matrix, offset: Vector, source: Index3, target: Index3) -> Mask:
    """Which voxels of the target have their centre within the outer faces of the source."""
    corners = _corners(target) @ matrix.T + offset
    if np.all((corners >= -FACE) & (corners <= np.asarray(source) - 1 + FACE)):
        return np.ones(target, dtype=bool)
    i, j, k = np.ogrid[tuple(slice(n) for n in target)]
    inside = np.ones(target, dtype=bool)
    for row, start, size in zip(matrix, offset, source, strict=True):
        at = row[0] * i + row[1] * j + row[2] * k + start
        inside &= (at >= -FACE) & (at <= size - 1 + FACE)
    return inside


def _needed(matrix: Matrix, offset: Vector, sigma: Vector, source: Index3, target: Index3) -> Box | None:
    """The part of the source that interpolation on the target looks at, smoothing included."""
    at = _corners(target) @ matrix.T + offset
    margin = 2 + np.ceil(3 * sigma)
    low = np.maximum(np.floor(at.min(axis=0) - margin).astype(int), 0)
    high = np.minimum(np.ceil(at.max(axis=0) + margin).astype(int) + 1, np.asarray(source))
    if np.any(high <= low):
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def _corners(shape: Index3) -> Int[np.ndarray, "8 3"]:
    """The voxels in the corners of an array."""
    return np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)


def _weights(at: Float[np.ndarray, " target"], part: slice, num_whole: int, sigma: float) -> sparse.csr_array:
    """What each voxel of a part of one axis gives to the places `at`: smoothing and interpolation in one matrix."""
    num = part.stop - part.start
    place = np.clip(at - part.start, 0, num - 1)
    low = np.minimum(place.astype(int), max(0, num - 2))
    rows = np.arange(len(at))
    weights = np.zeros((len(at), num))
    weights[rows, low] = 1 - (place - low)
    weights[rows, np.minimum(low + 1, num - 1)] += place - low
    weights[(at < -FACE) | (at > num_whole - 1 + FACE)] = 0
    if sigma > 0:
        weights = sparse.csr_array(weights) @ ndimage.gaussian_filter1d(
            np.eye(num), sigma, axis=0, mode="nearest", truncate=3.0
        )
    return sparse.csr_array(weights.astype(np.float32))


def _along_axes(image: Voxels, weights: list[sparse.csr_array]) -> Interpolated:
    """Each axis in turn, the one that shrinks most first.

    Always a sparse matrix: the sums of a dense product depend on how many threads the linear algebra has, and
    the same scan would not be the same in the store of another computer.
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


def _through(image: Voxels, matrix: Matrix, offset: Vector, shape: Index3) -> Interpolated:
    """Linear interpolation through any affine; beyond the outermost voxels their values hold."""
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    transform = sitk.AffineTransform(3)
    # SimpleITK counts an array's axes from the last.
    transform.SetMatrix(matrix[::-1, ::-1].ravel().tolist())
    transform.SetTranslation(offset[::-1].tolist())
    through = sitk.ResampleImageFilter()
    through.SetSize(shape[::-1])
    through.SetTransform(transform)
    through.SetInterpolator(sitk.sitkLinear)
    through.UseNearestNeighborExtrapolatorOn()
    through.SetNumberOfThreads(1)
    moved: Interpolated = sitk.GetArrayFromImage(through.Execute(sitk.GetImageFromArray(image)))
    return moved
