"""Volumes in memory: voxels, their affine, and turning them to RAS+."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from multiseg.errors import SourceError
from multiseg.types import Affine, Index3, Voxels

AFFINE_TOLERANCE_MM = 0.1
"""Two affines are the same if they place every corner of a volume within this distance."""
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.01, 1000.0
"""Voxel sizes outside this range are invalid. Sizes that are only implausible are found in `plausible`."""
MIN_DETERMINANT = 1e-3
"""The smallest determinant of the axes' directions. Below it, they are in one plane."""
MAX_SIDE_MM, MAX_OFFSET_MM = 4000.0, 1e5
"""Larger than any field of view. The origin of some scanners is far away."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in memory. `affine` maps its voxel indices to RAS+ millimetres.

    `header`: the raw bytes of the file's NIfTI header, or of one made for it. `sha256`: of the file on disk. `doubts`:
    warnings about how the file was read, as (code, text). The values in the file are `voxels + outside`.
    """

    voxels: Voxels
    affine: Affine
    header: bytes
    sha256: str
    path: Path
    doubts: tuple[tuple[str, str], ...] = field(default=())
    outside: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        i, j, k = self.voxels.shape
        return i, j, k


@dataclass(frozen=True, eq=False)
class Geometry:
    """What a header says about a volume. `affine` maps voxel indices to RAS+ millimetres.

    `num_volumes`: in the file; all are read to get one. `start`: offset of the voxels in the decompressed file.
    `disk_bytes`: size of the files on disk.
    """

    shape: Index3
    affine: Affine
    bytes_a_voxel: int
    num_volumes: int = 1
    start: int = 0
    disk_bytes: int = 0

    @property
    def file_bytes(self) -> int:
        """The size of all voxels in the decompressed file."""
        return math.prod(self.shape) * self.bytes_a_voxel * self.num_volumes


def to_ras(volume: Volume) -> Volume:
    """Permute and flip the axes of a volume so that i, j, k run closest to right, front, up."""
    orientation = _orientation_of(np.asarray(volume.affine, float).tobytes())
    voxels = apply_orientation(volume.voxels, orientation)
    affine = volume.affine @ inv_ornt_aff(orientation, volume.shape)
    return replace(volume, voxels=voxels, affine=affine)


def voxel_size_mm(affine: Affine) -> tuple[float, float, float]:
    """The length of a voxel along i, j and k."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0)
    return float(i), float(j), float(k)


def axis_codes(affine: Affine) -> str:
    """The directions that i, j, k run closest to, such as "LPS" (left, posterior, superior)."""
    return "".join(nib.orientations.ornt2axcodes(_orientation_of(np.asarray(affine, float).tobytes())))


@lru_cache(maxsize=256)
def _orientation_of(affine: bytes) -> Float[np.ndarray, "3 2"]:
    """The orientation of an affine of float64. Every step of an ingest asks for it, and it takes a decomposition."""
    orientation = np.asarray(io_orientation(np.frombuffer(affine).reshape(4, 4)))
    orientation.setflags(write=False)
    return orientation


def same_grid(a: Affine, b: Affine, shape: Sequence[int]) -> bool:
    """Whether two affines place every corner of a volume of this shape within 0.1 mm."""
    return apart_mm(a, b, shape) < AFFINE_TOLERANCE_MM


def apart_mm(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """The largest distance, along one axis, between a volume's corners under two affines."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return float(np.abs(corners @ (a - b).T).max())


def is_mapping(affine: Affine) -> bool:
    """Whether an affine is finite and invertible, with possible voxel sizes."""
    if not np.isfinite(affine).all():
        return False
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((sizes >= MIN_VOXEL_MM) & (sizes <= MAX_VOXEL_MM)).all():
        return False
    # Divided by the sizes, so that small voxels do not seem singular.
    return bool(abs(np.linalg.det(affine[:3, :3] / sizes)) > MIN_DETERMINANT)


def check_extent(path: Path, geometry: Geometry) -> None:
    """Check that a volume has a size and position that a scanner can have.

    Raises:
        SourceError: it is too large or too far away.
    """
    sides = np.array(voxel_size_mm(geometry.affine)) * geometry.shape
    if sides.max() > MAX_SIDE_MM or np.abs(geometry.affine[:3, 3]).max() > MAX_OFFSET_MM:
        origin = ", ".join(f"{mm:.4g}" for mm in geometry.affine[:3, 3])
        message = (
            f"{path} is {' x '.join(f'{mm:.4g}' for mm in sides)} mm large, with its origin at {origin} mm, by its "
            "header: too large or too far away for a scanner. Repair its header from the original scan."
        )
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
