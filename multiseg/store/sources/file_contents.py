"""What layouts read from the files themselves, if the names do not say enough."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from multiseg.errors import SourceError
from multiseg.store.cases import ScanFile
from multiseg.store.formats.read_volume import read_geometry, read_volume
from multiseg.store.formats.volumes import voxel_size_mm


@dataclass(frozen=True)
class Contents:
    """The codes in a label file other than 0, and the volume in ml of its voxels above 0.5."""

    codes: frozenset[int] = frozenset()
    ml: float = 0.0


def read_contents(file: ScanFile) -> Contents:
    """The contents of a label file; empty if it cannot be read, which is reported when its case is prepared."""
    try:
        volume = read_volume(file)
    except SourceError:
        return Contents()
    values, counts = np.unique(volume.voxels[volume.voxels != 0], return_counts=True)
    ml = counts[values > 0.5].sum() * math.prod(voxel_size_mm(volume.affine)) / 1000
    return Contents(frozenset(int(code) for code in np.rint(values)) - {0}, float(ml))


def codes_in(file: ScanFile) -> frozenset[int]:
    """The codes in a label file; none if it cannot be read."""
    return read_contents(file).codes


def is_4d(path: Path) -> bool:
    """Whether a file has several volumes; False if it cannot be read, which is reported when its case is prepared."""
    try:
        read_geometry(path)
    except SourceError as error:
        return error.code == "NOT_3D"
    return False


def box_mm(path: Path) -> Float[np.ndarray, "corner axis"] | None:
    """The lowest and highest corner, in RAS+ mm, of the box around a file's voxels; None if it cannot be read."""
    try:
        geometry = read_geometry(path)
    except SourceError:
        return None
    faces = [(-0.5, n - 0.5) for n in geometry.shape]
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*faces)]) @ geometry.affine.T
    return np.stack([corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)])
