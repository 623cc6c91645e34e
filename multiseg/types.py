"""Array types with named axes, in one vocabulary: `case modality label i j k batch` (i j k: RAS+ voxels)."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8
from numpy.typing import NDArray

Affine: TypeAlias = Float[np.ndarray, "4 4"]
"""Voxel indices to millimetres in RAS+ world space."""
Voxels: TypeAlias = Num[np.ndarray, "i j k"]
Mask: TypeAlias = Bool[np.ndarray, "i j k"]
Codes: TypeAlias = UInt8[np.ndarray, "i j k"]
Images: TypeAlias = Float[np.ndarray, "modality i j k"]
Index3: TypeAlias = tuple[int, int, int]
"""The indices of a voxel, the corner of a window, or its size."""
Array: TypeAlias = NDArray[np.generic]
