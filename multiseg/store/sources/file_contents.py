"""What a layout reads from the files themselves, where their names do not say enough."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
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
    """What a label file holds: its whole numbers other than 0, and the volume of the voxels above 0.5 in ml."""

    codes: frozenset[int] = frozenset()
    ml: float = 0.0


def look_into_label(file: ScanFile) -> Contents:
    """The contents of a label file; nothing where the file cannot be read.

    A damaged file is no reason to stop here: its own case says so when it is prepared.
    """
    try:
        volume = read_volume(file)
    except SourceError:
        return Contents()
    values, counts = np.unique(volume.voxels[volume.voxels != 0], return_counts=True)
    ml = counts[values > 0.5].sum() * math.prod(voxel_size_mm(volume.affine)) / 1000
    return Contents(frozenset(int(code) for code in np.rint(values)) - {0}, float(ml))


def codes_in(file: ScanFile) -> frozenset[int]:
    """The codes of a label file; none where the file cannot be read."""
    return look_into_label(file).codes


def codes_in_each(files: Iterable[ScanFile]) -> list[frozenset[int]]:
    """The codes of every file, in their order."""
    return [codes_in(file) for file in files]


def is_4d(path: Path) -> bool:
    """Whether a file holds several volumes; not where it cannot be read, which its case says when it is prepared."""
    try:
        read_geometry(path)
    except SourceError as error:
        return error.code == "NOT_3D"
    return False


def box_mm(path: Path) -> Float[np.ndarray, "corner axis"] | None:
    """The lowest and the highest corner, in RAS+ mm, of the box that a file's voxels fill; None where unreadable."""
    try:
        geometry = read_geometry(path)
    except SourceError:
        return None
    faces = [(-0.5, n - 0.5) for n in geometry.shape]
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*faces)]) @ geometry.affine.T
    return np.stack([corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)])
