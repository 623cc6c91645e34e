"""Write the brain mask that a model's network finds, to look at it, to correct it, or for ingest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multiseg.evaluation.brain_finding import brain_finder
from multiseg.files import check_files
from multiseg.models.brain_network import brain_network_at
from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Doubt
from multiseg.store.native import to_native_axes, write_on_native
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.plausible import Region, find_implausible
from multiseg.store.preparation.prepare import read_scene
from multiseg.store.preparation.recipe import Recipe


@dataclass(frozen=True)
class WrittenMask:
    """A brain mask in a file: its volume, the sequence whose voxels it has, and what a person should check."""

    path: Path
    ml: float
    reference: str
    doubts: tuple[Doubt, ...]


def write_brain_mask(
    model: Path,
    images: Mapping[str, Path],
    out: Path,
    recipe: Recipe | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> WrittenMask:
    """Write the mask of the brain, 0 and 1, in the voxels of the first image.

    Args:
        model: a brain network, or a run folder, a model file or a package that carries one.
        recipe: how the images are aligned; of the first image by default.

    Raises:
        UsageError: the model carries no brain network, or the file may not be written.
        CheckpointError: the model cannot be opened.
        SourceError: an image is damaged, or no brain is found.
    """
    check_files([out], [*images.values(), model], overwrite, (".nii.gz", ".nii"))
    find_brain = brain_finder(brain_network_at(model, device))
    recipe = recipe or Recipe(reference=next(iter(images)))
    files, journal = CaseFiles(out.name, dict(images), {}), Journal()
    with one_case(files.case, files.paths):
        scene = read_scene(files, {}, recipe, journal)
        mask = find_brain(scene, journal)
        grid, inside = grid_of(mask), mask.voxels == 1
        i, j, k = (slice(0, n) for n in grid.shape)
        region = Region((i, j, k), inside, grid)
        journal.warn_all(find_implausible({scene.reference: region}, grid, "file"))
    native = grid_of(scene.home)
    write_on_native(out, to_native_axes(mask.voxels, native), native, scene.home.header)
    ml = np.count_nonzero(inside) * float(np.prod(grid.spacing_mm)) / 1000
    return WrittenMask(out, ml, scene.reference, tuple(journal.doubts))
