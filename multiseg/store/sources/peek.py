"""Looking into label files before ingest, where names do not tell what their codes mean."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from multiseg.errors import SourceError
from multiseg.store.cases import ScanFile
from multiseg.store.formats.read_volume import read_volume
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
