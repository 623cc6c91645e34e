"""Turn the array of a file into the voxels of one volume: 3-D, grey, finite, as float32 or uint8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multiseg.errors import SourceError
from multiseg.types import Array, Index3, Voxels


def volume_shape(path: Path, shape: Sequence[int], index: int | None = None) -> Index3:
    """The shape of one volume in an array of this shape. Axes of length 1 after the third are ignored.

    Args:
        index: the number of a volume in a 4-D file; None if the file is one volume.

    Raises:
        SourceError: the array is not a volume, or has no volume of this number.
    """
    space, others = tuple(int(n) for n in shape[:3]), [int(n) for n in shape[3:] if n != 1]
    if index is not None and (len(others) > 1 or not 0 <= index < (others or [1])[0]):
        message = f"{path} has shape {tuple(shape)} and thus no volume {index}. Correct the number of the volume."
        raise SourceError(message, code="NO_SUCH_VOLUME", file=str(path))
    if len(space) != 3 or min(space) < 1 or (others and index is None):
        message = f"{path} has shape {tuple(shape)}; a volume of one sequence is 3-D. Split it into 3-D files."
        raise SourceError(message, code="NOT_3D", file=str(path))
    i, j, k = space
    return i, j, k


def refuse_colours(path: Path) -> SourceError:
    """The error for a file in colour."""
    message = f"{path} contains colours (RGB), not intensities. Give the original greyscale image."
    return SourceError(message, code="COLOUR_IMAGE", file=str(path))


def refuse_complex(path: Path) -> SourceError:
    """The error for a file of complex numbers."""
    message = f"{path} contains complex numbers. Give the magnitude image."
    return SourceError(message, code="COMPLEX_IMAGE", file=str(path))


def as_voxels(
    path: Path, stored: Array, index: int | None = None, slope: float = 1.0, intercept: float = 0.0
) -> Voxels:
    """The voxels of one volume: `stored * slope + intercept`, as uint8 if unscaled uint8, otherwise as float32.

    Returns the array itself, which may be read-only, if nothing has to change.

    Raises:
        SourceError: the array is not 3-D, in colour, complex or not finite.
    """
    space = volume_shape(path, stored.shape, index)
    if stored.dtype.fields is not None:
        raise refuse_colours(path)
    if np.iscomplexobj(stored):
        raise refuse_complex(path)
    part = stored.reshape((*space, -1), order="F")[..., index or 0]
    with np.errstate(over="ignore", invalid="ignore"):
        voxels = _scaled(part, slope, intercept, part.size == stored.size)
    # Integers are finite, and stay finite in float32.
    is_whole = stored.dtype.kind in "iub" and (slope, intercept) == (1.0, 0.0)
    if not is_whole and not np.isfinite(voxels).all():
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        message = f"{path} has {count} voxels that are NaN or infinite in float32. Repair it or export it again."
        raise SourceError(message, code="NOT_FINITE", file=str(path))
    return voxels


def _scaled(part: Array, slope: float, intercept: float, is_all: bool) -> Array:
    if (slope, intercept) != (1.0, 0.0):
        scaled = np.empty(part.shape, dtype=np.float32, order="F")
        for k in range(part.shape[2]):  # slice by slice: the whole volume in float64 would need twice the memory
            scaled[..., k] = part[..., k].astype(np.float64) * slope + intercept
        return scaled
    # A view of one volume of many would keep all of them in memory, so it is copied.
    return part.astype(part.dtype if part.dtype == np.uint8 else np.float32, copy=not is_all)
