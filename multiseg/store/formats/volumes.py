"""Volumes in memory: voxels, their place in space, and turning them to RAS+."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from multiseg.errors import SourceError
from multiseg.types import Affine, Index3, Voxels

AFFINE_TOLERANCE_MM = 0.1
"""Two affines that place every corner of a volume within this distance are the same."""
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.01, 1000.0
"""Sizes beyond these are no voxel's. What is implausible but possible, a look at the brain tells."""
MIN_DETERMINANT = 1e-3
"""Of the directions of the axes: below it, they lie in a plane."""
MAX_SIDE_MM, MAX_OFFSET_MM = 4000.0, 1e5
"""No field of view is as large. The origin of some scanners lies far away."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in memory. `affine` maps its voxel indices to RAS+ millimetres.

    `header` holds the file's raw header bytes, `sha256` the digest of the file as it lies on disk,
    `doubts` what a person should know about how the file was read. The file's values are `voxels + outside`.
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
    """What a header says of a volume, before any voxel is read. `affine` maps voxel indices to RAS+ millimetres.

    `num_volumes` lie in its file, and all of them are read for one. `start` is the byte at which they begin in the
    unpacked file, `disk_bytes` what its files take on the disk.
    """

    shape: Index3
    affine: Affine
    bytes_a_voxel: int
    num_volumes: int = 1
    start: int = 0
    disk_bytes: int = 0

    @property
    def file_bytes(self) -> int:
        """Of all voxels in the file, once it is unpacked."""
        return math.prod(self.shape) * self.bytes_a_voxel * self.num_volumes


def to_ras(volume: Volume) -> Volume:
    """The same volume with its axes permuted and flipped so that i, j, k run closest to right, front, up."""
    orientation = io_orientation(volume.affine)
    voxels = apply_orientation(volume.voxels, orientation)
    affine = volume.affine @ inv_ornt_aff(orientation, volume.shape)
    return replace(volume, voxels=voxels, affine=affine)


def voxel_size_mm(affine: Affine) -> tuple[float, float, float]:
    """The length of a voxel along i, j and k."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0)
    return float(i), float(j), float(k)


def axis_codes(affine: Affine) -> str:
    """The directions that i, j, k run closest to, such as "LPS" (left, posterior, superior)."""
    return "".join(nib.orientations.aff2axcodes(affine))


def same_grid(a: Affine, b: Affine, shape: Sequence[int]) -> bool:
    """Whether two affines put the corners of a volume of this shape at the same places (to 0.1 mm)."""
    return apart_mm(a, b, shape) < AFFINE_TOLERANCE_MM


def apart_mm(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """How far apart two affines put the corners of a volume of this shape, at most and along one axis of space."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return float(np.abs(corners @ (a - b).T).max())


def is_mapping(affine: Affine) -> bool:
    """Whether an affine takes voxels to places in space, one to one, and they have a size that voxels can have."""
    if not np.isfinite(affine).all():
        return False
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((sizes >= MIN_VOXEL_MM) & (sizes <= MAX_VOXEL_MM)).all():
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / sizes)) > MIN_DETERMINANT)


def check_extent(path: Path, geometry: Geometry) -> None:
    """Whether a volume lies somewhere where a patient may have lain.

    Raises:
        SourceError: it is larger or further away than any scanner.
    """
    sides = np.array(voxel_size_mm(geometry.affine)) * geometry.shape
    if sides.max() > MAX_SIDE_MM or np.abs(geometry.affine[:3, 3]).max() > MAX_OFFSET_MM:
        origin = ", ".join(f"{mm:.4g}" for mm in geometry.affine[:3, 3])
        message = (
            f"{path} is {' x '.join(f'{mm:.4g}' for mm in sides)} mm large and begins at {origin} mm by its header: no "
            "scanner is as large. Repair its header from the original scan."
        )
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
