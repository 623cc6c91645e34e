"""What a scan shows around the brain before its skull is removed: a face with eyes, a neck with a spinal cord.

Formulas as in `synthetic_head`: fractions of a voxel at points in mm. Skull and scalp are there already.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from multiseg.phantoms.surfaces import Field, Points, depth_mm, fraction

RAW_FIELD_OF_VIEW_MM = (200.0, 236.0, 220.0)
RAW_CENTRE_MM = (0.0, 4.0, -28.0)
"""The field of view of a raw scan, and its centre: lower than the brain, since a neck is in it."""
# Signal of (muscle, vitreous of the eyes, spinal cord, fluid around it).
OUTER_SIGNAL = {
    "T1": (0.50, 0.22, 0.78, 0.24),
    "T1c": (0.58, 0.24, 0.78, 0.26),
    "T2": (0.30, 1.0, 0.48, 1.0),
    "FLAIR": (0.34, 0.20, 0.52, 0.14),
    "PD": (0.55, 0.80, 0.68, 0.78),
    "DWI": (0.22, 0.10, 0.44, 0.12),
    "ADC": (0.40, 1.0, 0.30, 1.0),
}
Outer: TypeAlias = Float[np.ndarray, "outer=4 *grid"]


def outer_tissues(points: Points, skull_mm: Field, blur_mm: float) -> Outer:
    """The fractions of (muscle, vitreous, spinal cord, its fluid) of each voxel.

    Args:
        skull_mm: the depth below the skull's inner surface, negative outside.
    """
    x, y, z = points
    outside = fraction(-skull_mm - 6, blur_mm)
    below = fraction(-z - 46, blur_mm)
    axis_mm = np.hypot(x, y + 20 + 0.12 * (z + 50))  # of the spinal canal, which bends to the front
    eyes = fraction(depth_mm(np.stack([np.abs(x), y, z]), (31.0, 64.0, -30.0), (12.0, 12.0, 12.0)), blur_mm)
    cord, canal = (fraction(radius - axis_mm, blur_mm) * below for radius in (6.0, 9.5))
    vertebra = fraction(15.0 - axis_mm, blur_mm) * below
    neck = fraction(52.0 - np.hypot(x, 0.9 * (y + 18)), blur_mm) * fraction(-z - 20, blur_mm)
    face = fraction(depth_mm(points, (0.0, 42.0, -62.0), (52.0, 44.0, 56.0)), blur_mm)
    nose = fraction(depth_mm(points, (0.0, 58.0, -62.0), (11.0, 24.0, 20.0)), blur_mm)
    airway = fraction(depth_mm(points, (0.0, 12.0, -96.0), (8.0, 7.0, 44.0)), blur_mm)
    air = np.maximum(nose, airway)
    eyes = eyes * outside
    muscle = np.maximum(neck, face) * outside * (1 - air) * (1 - eyes) * (1 - np.maximum(vertebra, canal))
    return np.stack([muscle, eyes, cord * outside, (canal - cord) * outside]).astype(np.float32)
