"""Where the volumes of a case lie, and whether they meet in space."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume, same_grid, to_ras
from multiseg.store.preparation.boxes import box_of
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.journal import Journal

MIN_COVERAGE = 0.01
"""A scan that covers less than this share of the reference image's box does not belong to it."""
LITTLE_COVERAGE = 0.5
"""A scan that covers less than this share is looked at by a person."""
MOST_OF_LABEL = 0.9
"""A label or mask of which less than this share of its own box lies in the reference's box is looked at, too."""


def grid_of(volume: Volume) -> Grid:
    """Where a volume's voxels lie."""
    return Grid(volume.affine, volume.shape)


def shares_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same voxels in space, whatever order their files keep them in."""
    a, b = to_ras(a), to_ras(b)
    return a.shape == b.shape and same_grid(a.affine, b.affine, a.shape)


def lies_on(drawn: Volume, image: Volume) -> bool:
    """Whether a label or mask was drawn on an image: it has the image's voxels, or a box of them (3D Slicer crops)."""
    drawn, image = to_ras(drawn), to_ras(image)
    if not grid_of(image).shares_lattice(grid_of(drawn)):
        return False
    _, offset = grid_of(image).voxel_map(grid_of(drawn))
    first = np.rint(offset).astype(int)
    return bool((first >= 0).all() and (first + drawn.shape <= image.shape).all())


def check_overlap(volumes: Mapping[str, Volume], home: Grid, reference: str, journal: Journal) -> None:
    """Whether every volume lies where the reference image is.

    A scan has to cover the reference's box. A label or a mask may be as small as what it marks, so the question is
    turned round: how much of the box around its marked voxels lies within the reference's.

    Raises:
        SourceError: one does not (NO_OVERLAP).
    """
    for role, volume in volumes.items():
        is_drawn = role == "brain_mask" or role.startswith("label:")
        share = home.coverage(_marked(volume)) if is_drawn else grid_of(volume).coverage(home)
        if is_drawn:
            said = f"{share:.0%} of what it marks lies within {reference}'s box"
        else:
            said = f"it covers {share:.0%} of {reference}'s box"
        if share < MIN_COVERAGE:
            raise SourceError(
                f"{role} ({volume.path}, shape {volume.shape}) does not overlap {reference} in space: {said}. "
                "Is it another patient's, or its header lost?",
                code="NO_OVERLAP",
                file=str(volume.path),
            )
        if share < (MOST_OF_LABEL if is_drawn else LITTLE_COVERAGE):
            journal.warn("SMALL_OVERLAP", f"{role} ({volume.path.name}): only {said}. Look at the overlay.")


def _marked(volume: Volume) -> Grid:
    """The box around what a label or mask marks; all of it where it is empty."""
    box = box_of(volume.voxels != 0)
    return grid_of(volume) if box is None else grid_of(volume).part(box)
