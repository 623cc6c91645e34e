"""Array types with named axes, in one vocabulary: `case modality label i j k batch` (i j k: RAS+ voxels)."""

from collections.abc import Callable
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
OnStep: TypeAlias = Callable[[int, int, str], None]
"""What long work calls for its progress: with the number of finished steps, of all steps, and what is in hand."""


def no_progress(done: int, total: int, what: str) -> None:
    """The `OnStep` of work that nobody watches."""
