"""What a case will take, told from its files' headers: memory to prepare it, and voxels in the store."""

from __future__ import annotations

import math
from dataclasses import dataclass

from multiseg.store.cases import CaseFiles, Majority
from multiseg.store.formats.reading import read_geometry
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.recipe import Recipe

BYTES_A_VOXEL_READ = 12
"""A volume as its file has it and turned to RAS, in float32, with a mask or a copy at the same time."""
BYTES_A_VOXEL_KEPT = 4
"""A sequence on the store's grid, in float16, once prepared and once in the stack that is packed."""
BYTES_A_VOXEL_WORKED = 24
"""What is at work on one sequence on the store's grid."""
FIXED_BYTES = 100_000_000
"""Libraries and what else a worker needs."""


@dataclass(frozen=True)
class Estimate:
    """Of one case: voxels of its grid times sequences, and bytes at the height of its preparation."""

    voxels: int
    memory_bytes: int


def estimate(case: CaseFiles, recipe: Recipe) -> Estimate:
    """From the headers alone; the case's grid is taken to be its largest image's, before it is cropped.

    Raises:
        SourceError: a header cannot be read.
    """
    read, grid = 0, 0
    for role, file in case.by_role.items():
        for part in file.raters if isinstance(file, Majority) else (file,):
            geometry = read_geometry(part)
            read += math.prod(geometry.shape)
            if role in case.images:
                spaced = Grid(geometry.affine, geometry.shape).respaced(recipe.spacing_mm)
                grid = max(grid, math.prod(spaced.shape))
    volumes = len(case.images) + len(case.labels)
    memory = BYTES_A_VOXEL_READ * read + grid * (BYTES_A_VOXEL_KEPT * volumes + BYTES_A_VOXEL_WORKED)
    return Estimate(grid * len(case.images), FIXED_BYTES + memory)
