"""What a case will take, told from its files' headers: memory to prepare it, and voxels in the store."""

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
"""A volume as its file has it and turned to RAS, in float32, with a mask or a copy at the same time."""
BYTES_A_VOXEL_KEPT = 4
"""A sequence on the store's grid, in float16, once prepared and once in the stack that is packed."""
BYTES_A_VOXEL_WORKED = 24
"""What is at work on one sequence on the store's grid."""
BYTES_A_VOXEL_REGISTERED = 16
"""Of the largest image: what is smoothed for the levels that it is registered on."""
TIMES_UNPACKED = 1.125
"""What unpacking takes of the unpacked size, whose buffer grows by an eighth."""
FIXED_BYTES = 130_000_000
"""Libraries and what else a worker needs."""
SIMPLEITK_BYTES = 100_000_000
"""That library, which only registration and N4 load."""


@dataclass(frozen=True)
class Estimate:
    """Of one case: voxels of its grid times sequences, and bytes at the height of its preparation."""

    voxels: int
    memory_bytes: int


def estimate(case: CaseFiles, recipe: Recipe) -> Estimate:
    """From the headers alone; the case's grid is taken to be its largest image's, before it is cropped.

    Raters are read one after another and kept as codes of a byte, so the largest counts as a volume.

    Raises:
        SourceError: a header cannot be read.
    """
    with one_case(case.case, case.paths):
        return _estimate(case, recipe)


def _bytes_in_memory(file: Geometry) -> int:
    """A file's bytes as they lie on disk and unpacked, all volumes of a 4-D file for one of them."""
    return max(file.disk_bytes, file.file_bytes) + round(TIMES_UNPACKED * file.file_bytes)


def _estimate(case: CaseFiles, recipe: Recipe) -> Estimate:
    kept, grid, largest, unpacked = 0, 0, 0, 0
    for role, file in case.by_role.items():
        parts = [read_geometry(part) for part in (file.raters if isinstance(file, Majority) else (file,))]
        voxels = [math.prod(part.shape) for part in parts]
        kept += BYTES_A_VOXEL_READ * max(voxels) + (sum(voxels) if isinstance(file, Majority) else 0)
        unpacked = max(unpacked, *map(_bytes_in_memory, parts))
        if role in case.images:
            (geometry,) = parts
            largest = max(largest, *voxels)
            spaced = Grid(geometry.affine, geometry.shape).respaced(recipe.spacing_mm)
            grid = max(grid, math.prod(spaced.shape))
    volumes = len(case.images) + len(case.labels)
    work = grid * (BYTES_A_VOXEL_KEPT * volumes + BYTES_A_VOXEL_WORKED)
    if recipe.register:
        work += BYTES_A_VOXEL_REGISTERED * largest
    # A file's bytes are gone before the work on the grid begins.
    memory = kept + max(work, unpacked)
    fixed = FIXED_BYTES + (SIMPLEITK_BYTES if recipe.register or recipe.n4 else 0)
    return Estimate(grid * len(case.images), fixed + memory)
