"""From the array that a file holds to the voxels of one volume: 3-D, grey, finite, as float32 or uint8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multiseg.errors import SourceError
from multiseg.types import Array, Index3, Voxels


def volume_shape(path: Path, shape: Sequence[int], index: int | None = None) -> Index3:
    """The shape of the volume in an array of this shape, axes of length 1 after the third left out.

    Args:
        index: which volume of a 4-D file is meant; None for the file as a whole.

    Raises:
        SourceError: the array is no volume, or has none of this number.
    """
    space, others = tuple(int(n) for n in shape[:3]), [int(n) for n in shape[3:] if n != 1]
    if index is not None and (len(others) > 1 or not 0 <= index < (others or [1])[0]):
        message = f"{path} has shape {tuple(shape)} and so no volume number {index}. Is its description of it right?"
        raise SourceError(message, code="NO_SUCH_VOLUME", file=str(path))
    if len(space) != 3 or min(space) < 1 or (others and index is None):
        message = f"{path} has shape {tuple(shape)}; a volume of one sequence is 3-D. Split it into 3-D files."
        raise SourceError(message, code="NOT_3D", file=str(path))
    i, j, k = space
    return i, j, k


def refuse_colours(path: Path) -> SourceError:
    """What to say of a file in colour."""
    message = f"{path} holds colours (RGB), not intensities. Give the original greyscale image."
    return SourceError(message, code="COLOUR_IMAGE", file=str(path))


def refuse_complex(path: Path) -> SourceError:
    """What to say of a file of complex numbers."""
    message = f"{path} holds complex numbers. Give the magnitude image."
    return SourceError(message, code="COMPLEX_IMAGE", file=str(path))


def as_voxels(path: Path, stored: Array, index: int | None = None, slope: float = 1.0, inter: float = 0.0) -> Voxels:
    """The voxels of one volume: `stored * slope + inter`. The array itself comes back where nothing has to
    change, which may be read-only.

    Raises:
        SourceError: it is not 3-D, in colour, complex or not finite.
    """
    space = volume_shape(path, stored.shape, index)
    if stored.dtype.fields is not None:
        raise refuse_colours(path)
    if np.iscomplexobj(stored):
        raise refuse_complex(path)
    part = stored.reshape((*space, -1), order="F")[..., index or 0]
    with np.errstate(over="ignore", invalid="ignore"):
        voxels = _scaled(part, slope, inter, part.size == stored.size)
    # Whole numbers are finite, and so are they in float32.
    is_whole = stored.dtype.kind in "iub" and (slope, inter) == (1.0, 0.0)
    if not is_whole and not np.isfinite(voxels).all():
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        message = f"{path} holds {count} voxels that are NaN or infinite in float32. Repair or export it again."
        raise SourceError(message, code="NOT_FINITE", file=str(path))
    return voxels


def _scaled(part: Array, slope: float, inter: float, is_all: bool) -> Array:
    if (slope, inter) != (1.0, 0.0):
        scaled = np.empty(part.shape, dtype=np.float32, order="F")
        for k in range(part.shape[2]):  # a slice at a time: float64 for all of it would be twice the memory
            scaled[..., k] = part[..., k].astype(np.float64) * slope + inter
        return scaled
    # One of many volumes would keep all of them in memory.
    return part.astype(part.dtype if part.dtype == np.uint8 else np.float32, copy=not is_all)
