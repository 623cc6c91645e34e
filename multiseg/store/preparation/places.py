"""Positions of the volumes of a case in space, and how far they overlap."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume, same_grid, to_ras
from multiseg.store.preparation.boxes import box_of
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.journal import Journal

MIN_COVERAGE = 0.01
"""A scan that covers less than this share of the reference image's box is refused."""
LITTLE_COVERAGE = 0.5
"""A scan that covers less than this share gets a warning."""
MOST_OF_LABEL = 0.9
"""A label or mask with less than this share of its box in the reference's box gets a warning."""


def grid_of(volume: Volume) -> Grid:
    """The grid of a volume's voxels."""
    return Grid(volume.affine, volume.shape)


def shares_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same voxels in space, in any order and direction of their axes."""
    a, b = to_ras(a), to_ras(b)
    return a.shape == b.shape and same_grid(a.affine, b.affine, a.shape)


def lies_on(drawn: Volume, image: Volume) -> bool:
    """Whether a label or mask has the voxels of an image, or a box of them (3D Slicer crops)."""
    drawn, image = to_ras(drawn), to_ras(image)
    if not grid_of(image).shares_lattice(grid_of(drawn)):
        return False
    _, offset = grid_of(image).voxel_map(grid_of(drawn))
    first = np.rint(offset).astype(int)
    return bool((first >= 0).all() and (first + drawn.shape <= image.shape).all())


def check_overlap(volumes: Mapping[str, Volume], home: Grid, reference: str, journal: Journal) -> None:
    """Check that every volume overlaps the reference image.

    A scan has to cover the reference's box. A label or mask may be small, so the box around its marked voxels has to
    be within the reference's box.

    Raises:
        SourceError: a volume does not overlap (NO_OVERLAP).
    """
    for role, volume in volumes.items():
        is_drawn = role == "brain_mask" or role.startswith("label:")
        share = home.coverage(_marked(volume)) if is_drawn else grid_of(volume).coverage(home)
        if is_drawn:
            overlap = f"{share:.0%} of what it marks is within the box of {reference}"
        else:
            overlap = f"it covers {share:.0%} of the box of {reference}"
        if share < MIN_COVERAGE:
            message = (
                f"{role} ({volume.path}, shape {volume.shape}) does not overlap {reference} in space: {overlap}. "
                "Is it from another patient, or is its header lost?"
            )
            raise SourceError(message, code="NO_OVERLAP", file=str(volume.path))
        if share < (MOST_OF_LABEL if is_drawn else LITTLE_COVERAGE):
            journal.warn("SMALL_OVERLAP", f"{role} ({volume.path.name}): only {overlap}. Look at the overlay.")


def _marked(volume: Volume) -> Grid:
    """The box around the marked voxels of a label or mask; the whole grid if it is empty."""
    box = box_of(volume.voxels != 0)
    return grid_of(volume) if box is None else grid_of(volume).part(box)
