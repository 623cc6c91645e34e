"""The brains of a store, in the coarse voxels on which a network learns to find the brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from multiseg.loaders.synthetic_scans import SPACING_MM, BrainShape
from multiseg.store.catalogue import select
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.plausible import Region, find_implausible
from multiseg.store.reader import Case, Database, Store
from multiseg.types import Mask

SHELL = 1.1
"""A slice of a brain has few holes. If filling them makes a mask larger by this factor, it has scalp around a skull."""


def brain_shapes(
    store: Store, databases: Sequence[str] = (), split: str = "train"
) -> tuple[tuple[tuple[Case, BrainShape], ...], dict[str, str]]:
    """The brains of the cases of a split, and the names of the cases that show more or less than a brain, with why.

    Raises:
        StoreError: the store has no such database, or one is damaged.
    """
    shapes, left_out = [], {}
    for case in select(store, databases, split=split):
        database = store[case.database]
        images, _ = database.whole(case)
        stored = (images != 0).any(axis=0)
        if fault := fault_of(stored, case.grid):
            left_out[f"{case.database}/{case.name}"] = fault
        else:
            brain = np.asarray(ndimage.binary_fill_holes(stored))
            shapes.append((case, _shape(database, case, images, brain)))
    return tuple(shapes), left_out


def fault_of(stored: Mask, grid: Grid) -> str:
    """Why the voxels of a case that are not 0 are no brain; "" if they may be one."""
    if not stored.any():
        return "it is empty"
    slices = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(stored, 2, 0)])
    if np.count_nonzero(slices) > SHELL * np.count_nonzero(stored):
        return "it has a skull, with a gap between brain and scalp"
    i, j, k = (slice(0, n) for n in stored.shape)
    # Cases are cropped to their brain, so a brain that is cut off cannot be told.
    found = find_implausible({"all sequences": Region((i, j, k), stored, grid)}, grid, "file")
    return next((text for code, text in found if code != "BRAIN_CUT"), "")


def _shape(database: Database, case: Case, images: Float[np.ndarray, "modality i j k"], brain: Mask) -> BrainShape:
    """A case's sequences in coarse voxels, each the mean over the part of a voxel that is brain."""
    spacing = (SPACING_MM, SPACING_MM, SPACING_MM)
    shape = tuple(n + 4 for n in case.extent)
    padded = case.grid.cropped((-2, -2, -2), (shape[0], shape[1], shape[2]))
    coarse = padded.respaced(spacing)
    share = resample(brain.astype(np.float32), case.grid, coarse)
    given = [channel for channel, name in enumerate(database.modalities) if name in case.modalities]
    values = [
        resample(images[channel].astype(np.float32), case.grid, coarse) / np.maximum(share, 0.25) for channel in given
    ]
    return BrainShape(
        case.database, case.name, np.stack(values).astype(np.float16), np.clip(share, 0, 1).astype(np.float16)
    )
