"""Estimating from the headers of a case's files the memory to prepare it and its voxels in the store."""

from __future__ import annotations

import math
from dataclasses import dataclass

from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles, Majority
from multiseg.store.formats.read_volume import read_geometry
from multiseg.store.formats.volumes import Geometry
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.recipe import Recipe

BYTES_A_VOXEL_READ = 12
"""A volume in its file's order and in RAS order, both float32, and a mask or a copy at the same time."""
BYTES_A_VOXEL_KEPT = 4
"""A sequence on the store's grid in float16, once by itself and once in the stack that is encoded."""
BYTES_A_VOXEL_WORKED = 24
"""Temporary arrays for one sequence on the store's grid."""
BYTES_A_VOXEL_REGISTERED = 16
"""The largest image, smoothed for the levels of its registration."""
TIMES_UNPACKED = 1.125
"""Memory to decompress a file, as a multiple of its decompressed size: the buffer grows by an eighth."""
FIXED_BYTES = 130_000_000
"""Libraries, and everything else that a worker needs for any case."""
SIMPLEITK_BYTES = 100_000_000
"""SimpleITK, which only registration and N4 load."""


@dataclass(frozen=True)
class Estimate:
    """The size of one case: voxels of its grid times sequences, and peak memory of its preparation in bytes."""

    voxels: int
    memory_bytes: int


def estimate(case: CaseFiles, recipe: Recipe) -> Estimate:
    """Estimate the size of a case from its headers alone. Its grid is taken to be that of its largest image, uncropped.

    Raters are read one after another and kept as one byte per voxel, so that only the largest counts as a volume.

    Raises:
        SourceError: a header cannot be read.
    """
    with one_case(case.case, case.paths):
        return _estimate(case, recipe)


def _bytes_in_memory(file: Geometry) -> int:
    """Memory for a file's bytes, as on disk and decompressed; for one volume of a 4-D file, all are needed."""
    return max(file.disk_bytes, file.file_bytes) + round(TIMES_UNPACKED * file.file_bytes)


def _estimate(case: CaseFiles, recipe: Recipe) -> Estimate:
    volume_bytes, grid_voxels, largest, file_bytes = 0, 0, 0, 0
    for role, file in case.by_role.items():
        parts = [read_geometry(part) for part in (file.raters if isinstance(file, Majority) else (file,))]
        voxels = [math.prod(part.shape) for part in parts]
        volume_bytes += BYTES_A_VOXEL_READ * max(voxels) + (sum(voxels) if isinstance(file, Majority) else 0)
        file_bytes = max(file_bytes, *map(_bytes_in_memory, parts))
        if role in case.images:
            (geometry,) = parts
            largest = max(largest, *voxels)
            spaced = Grid(geometry.affine, geometry.shape).respaced(recipe.spacing_mm)
            grid_voxels = max(grid_voxels, math.prod(spaced.shape))
    volumes = len(case.images) + len(case.labels)
    work_bytes = grid_voxels * (BYTES_A_VOXEL_KEPT * volumes + BYTES_A_VOXEL_WORKED)
    if recipe.register:
        work_bytes += BYTES_A_VOXEL_REGISTERED * largest
    # A file's bytes are freed before the work on the grid begins.
    peak_bytes = volume_bytes + max(work_bytes, file_bytes)
    fixed_bytes = FIXED_BYTES + (SIMPLEITK_BYTES if recipe.register or recipe.n4 else 0)
    return Estimate(grid_voxels * len(case.images), fixed_bytes + peak_bytes)
