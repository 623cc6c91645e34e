"""What a layout asks of headers, where the names of files do not tell enough."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Float

from multiseg.errors import SourceError
from multiseg.store.formats.read_volume import read_geometry


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
