"""Surfaces of phantoms as depths in mm, and the fraction of a voxel that is inside."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Float

Triple: TypeAlias = tuple[float, float, float]
Points: TypeAlias = Float[np.ndarray, "axis=3 *grid"]
Field: TypeAlias = Float[np.ndarray, "*grid"]


def depth_mm(points: Points, centre: Triple, radii: Triple) -> Field:
    """The approximate distance to the surface of an ellipsoid, positive inside."""
    x, y, z = ((p - c) / r for p, c, r in zip(points, centre, radii, strict=True))
    depth: Field = (1 - np.sqrt(x * x + y * y + z * z)) * float(np.mean(radii))
    return depth


def fraction(depth: Field, blur_mm: float) -> Field:
    """The fraction of a voxel at this depth that is inside the surface."""
    inside: Field = np.clip(depth / blur_mm + 0.5, 0, 1)
    return inside
