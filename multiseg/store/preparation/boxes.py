"""Boxes of voxels, as one slice per axis."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from multiseg.types import Index3, Mask

Box: TypeAlias = tuple[slice, slice, slice]
Vector: TypeAlias = Float[np.ndarray, " 3"]


def starts(box: Box) -> Index3:
    """The first voxel of a box."""
    i, j, k = (int(part.start) for part in box)
    return i, j, k


def sizes(box: Box) -> Index3:
    """The shape of a box."""
    i, j, k = (int(part.stop - part.start) for part in box)
    return i, j, k


def box_at(corner: Index3, shape: Index3) -> Box:
    """The box of this shape whose first voxel is `corner`."""
    i, j, k = (slice(c, c + n) for c, n in zip(corner, shape, strict=True))
    return i, j, k


def box_of(mask: Mask) -> Box | None:
    """The smallest box around a mask's voxels; None for an empty mask."""
    parts = []
    for others in ((1, 2), (0, 2), (0, 1)):
        indices = np.flatnonzero(mask.any(axis=others))
        if len(indices) == 0:
            return None
        parts.append(slice(int(indices[0]), int(indices[-1]) + 1))
    return parts[0], parts[1], parts[2]


def box_over(positions: Float[np.ndarray, "point 3"], shape: Index3, margin: float | Vector = 0.0) -> Box | None:
    """The voxels of an array of this shape that may be at or between these positions; None if there are none."""
    low = np.maximum(np.floor(positions.min(axis=0) - margin).astype(int), 0)
    high = np.minimum(np.ceil(positions.max(axis=0) + margin).astype(int) + 1, np.asarray(shape))
    if np.any(high <= low):
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def box_around(boxes: list[Box]) -> Box:
    """The smallest box that contains all of these boxes, at least one."""
    i, j, k = (slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(3))
    return i, j, k


def to_outer(box: Box, outer: Box) -> Box:
    """Convert a box from indices within the box `outer` to indices of the whole array."""
    i, j, k = (slice(b.start + o.start, b.stop + o.start) for b, o in zip(box, outer, strict=True))
    return i, j, k


def within(box: Box, outer: Box) -> Box:
    """Convert a box from indices of the whole array to indices within the box `outer`."""
    i, j, k = (slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, outer, strict=True))
    return i, j, k
