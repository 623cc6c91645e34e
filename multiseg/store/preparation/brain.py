"""Find the brain: by the case's mask, a mask of the reference image, or the non-zero voxels of each sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Num
from scipy import ndimage

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import Box, box_of, to_outer
from multiseg.store.preparation.extraction import run_extraction
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.outside import border_value
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.plausible import Region, find_implausible
from multiseg.store.preparation.recipe import COMMAND, Recipe
from multiseg.store.preparation.similarity import coarse
from multiseg.store.preparation.space import Scene
from multiseg.types import Mask, Voxels

STRIPPED_SHARE = 0.8
"""A brain surrounded by zeros fills about half of its box. Above this share, skull or air is included."""
OTSU_MM, CLOSING_MM = 3.0, 9.0
"""The voxel size on which the head is found, and the widest gaps in its outline that are closed (as at the skull)."""


@dataclass(frozen=True, eq=False)
class BrainImage:
    """A sequence within a box of the case's grid: its values, and the mask of its brain.

    `values` are 0 outside the brain; the values in the file are `values + outside`.
    """

    box: Box
    values: Voxels
    mask: Mask
    outside: float = 0.0


def find_brains(scene: Scene, recipe: Recipe, journal: Journal) -> dict[str, BrainImage]:
    """Resample every sequence to the case's grid and find its brain.

    Raises:
        SourceError: a mask is needed but missing, not a mask, or empty; or a sequence is 0 or constant in the brain.
    """
    rule = recipe.brain_mask
    given = scene.volumes.get("brain_mask")
    if rule != "file" and given is not None:
        journal.step("brain_mask", f"not used: the recipe takes the brain by {rule.partition(' ')[0]}")
    if rule == "nonzero":
        return {name: _nonzero(name, scene, journal) for name in scene.names}
    mask = given if rule == "file" else _mask_of_reference(scene, rule, journal)
    if mask is None:
        raise SourceError(
            "this case has no brain mask, which the recipe needs. Add its mask, or choose another rule: "
            "--brain-mask nonzero or otsu.",
            code="NO_BRAIN_MASK",
        )
    box, brain = _on_grid(mask, scene.grid)
    if rule == "file":
        _journal_lattice("brain_mask", mask, scene.grid, journal)
    return {name: _masked(name, scene, box, brain, journal) for name in scene.names}


def check_brains(images: Mapping[str, BrainImage], scene: Scene, recipe: Recipe, journal: Journal) -> None:
    """Warn of implausible brains; see `plausible`."""
    regions = {name: Region(image.box, image.mask, grid_of(scene.volumes[name])) for name, image in images.items()}
    journal.warn_all(find_implausible(regions, scene.grid, recipe.brain_mask))


def _mask_of_reference(scene: Scene, rule: str, journal: Journal) -> Volume:
    reference = scene.volumes[scene.reference]
    if rule.startswith(COMMAND):
        voxels, method = run_extraction(rule.removeprefix(COMMAND), reference, scene.home.path)
        path = reference.path.with_name(f"the mask of {reference.path.name}")
    else:
        # The brain of a stripped image may be darker or brighter than its surroundings.
        is_stripped = border_value(reference.voxels) == 0
        contrast = np.abs(reference.voxels) if is_stripped else reference.voxels
        voxels, method = otsu_head(contrast, grid_of(reference)), "Otsu's threshold"
        path = reference.path.with_name(f"the head in {reference.path.name}")
    journal.step(scene.reference, f"brain mask made from it by {method}")
    return replace(reference, voxels=voxels.astype(np.uint8), path=path)


def otsu_head(voxels: Voxels, grid: Grid) -> Mask:
    """The mask of what is brighter than air: the brain of a skull-stripped image, otherwise the whole head.

    On voxels of 3 mm: Otsu's threshold (1979), gaps up to 9 mm closed, the largest connected part, and its holes
    filled in 3-D and in every slice.
    """
    rough = coarse(grid, OTSU_MM)
    image = resample(voxels, grid, rough)
    radius = [max(1, round(CLOSING_MM / mm / 2)) for mm in rough.spacing_mm]
    bright = np.pad(image > _otsu(image), [(r, r) for r in radius])
    offsets = np.ogrid[tuple(slice(-r, r + 1) for r in radius)]
    ball = sum((o / r) ** 2 for o, r in zip(offsets, radius, strict=True)) <= 1
    closed = ndimage.binary_closing(bright, ball)[tuple(slice(r, -r) for r in radius)]
    parts, count = ndimage.label(closed)
    if count == 0:
        return np.zeros(voxels.shape, dtype=bool)
    head = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    for axis in range(3):
        for plane in np.moveaxis(head, axis, 0):
            plane[...] = ndimage.binary_fill_holes(plane)
    return resample(ndimage.binary_fill_holes(head).astype(np.float32), rough, grid, smooth=False) > 0.5


def _otsu(values: Voxels) -> float:
    """The threshold with the least variance within the dark and within the bright voxels (Otsu 1979)."""
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    counts, edges = np.histogram(values, 256, (low, high) if high > low else (low, low + 1))
    middle = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(edges[1 + int(np.argmax(np.nan_to_num(between)))])


def _on_grid(volume: Volume, grid: Grid) -> tuple[Box, Mask]:
    """Resample a mask; returns its box on the case's grid and the mask within it."""
    box = box_of(volume.voxels != 0)
    inside = None if box is None else volume.voxels[box]
    if inside is not None and np.any(np.abs(inside - np.rint(inside)) > 0.01):
        message = (
            f"{volume.path} has values that are not whole numbers, so it is not a brain mask. Give a mask of 0 and 1, "
            "or a parcellation."
        )
        raise SourceError(message, code="NOT_A_MASK", file=str(volume.path))
    source = grid_of(volume)
    region = None if box is None else source.box_on(grid, box)
    if region is not None:
        whole = (volume.voxels > 0.5).astype(np.float32)
        mask = resample(whole, source, grid.part(region), smooth=False) > 0.5
        tight = box_of(mask)
    if region is None or tight is None:
        message = (
            f"{volume.path} has no voxel above 0.5 within the images, so no brain is left. Is it this case's mask?"
        )
        raise SourceError(message, code="EMPTY_BRAIN", file=str(volume.path))
    mask = mask[tight]
    return to_outer(tight, region), mask


def _masked(name: str, scene: Scene, box: Box, brain: Mask, journal: Journal) -> BrainImage:
    volume, part = scene.volumes[name], scene.grid.part(box)
    source = grid_of(volume)
    values = resample(volume.voxels, source, part)
    _journal_lattice(name, volume, scene.grid, journal)
    mask = brain & source.contains(part)
    _check_contrast(name, volume, values[mask])
    return BrainImage(box, values, mask, volume.outside)


def _nonzero(name: str, scene: Scene, journal: Journal) -> BrainImage:
    volume = scene.volumes[name]
    source, box = grid_of(volume), scene.filled[name]
    region = None if box is None else source.box_on(scene.grid, box)
    if box is None or region is None:
        raise _empty(name, volume)
    nonzero = volume.voxels[box] != 0
    part = scene.grid.part(region)
    values = resample(volume.voxels, source, part)
    _journal_lattice(name, volume, scene.grid, journal)
    if source.shares_lattice(part):
        mask = values != 0
    else:
        inside = np.zeros(volume.shape, dtype=np.float32)
        inside[box] = nonzero
        mask = resample(inside, source, part, smooth=False) > 0.5
        # Interpolation with the zeros around the brain darkened its border: divide by the share of brain.
        values /= np.maximum(resample(inside, source, part), 0.25)
    _check_contrast(name, volume, values[mask])
    share = np.count_nonzero(nonzero) / volume.voxels.size
    if share > STRIPPED_SHARE:
        journal.warn("NO_BACKGROUND", f"{name}: {share:.0%} of the voxels are not zero, so skull and air are "
                     "included in the brain. Give a brain mask: --brain-mask.")  # fmt: skip
    return BrainImage(region, values, mask, volume.outside)


def _journal_lattice(role: str, volume: Volume, grid: Grid, journal: Journal) -> None:
    if not grid_of(volume).shares_lattice(grid):
        journal.step(role, f"resampled from {spacing_text(grid_of(volume))} to {spacing_text(grid)} (linear)")


def spacing_text(grid: Grid) -> str:
    """The voxel size as text."""
    return " x ".join(f"{mm:.4g}" for mm in grid.spacing_mm) + " mm"


def _empty(name: str, volume: Volume) -> SourceError:
    message = f"{name} ({volume.path}) is 0 everywhere in the brain."
    return SourceError(message, code="EMPTY_IMAGE", file=str(volume.path))


def _check_contrast(name: str, volume: Volume, values: Num[np.ndarray, " voxel"]) -> None:
    if values.size == 0:
        raise _empty(name, volume)
    # A mask gets contrast at its border when resampled, so its original voxels are checked too.
    if _is_constant(values) or _is_flat(volume.voxels):
        mean = float(values.mean(dtype=np.float64)) + volume.outside
        message = f"{name} ({volume.path}) is constant ({mean:.6g}) in the brain. Is this a mask?"
        raise SourceError(message, code="CONSTANT_IMAGE", file=str(volume.path))


def _is_flat(voxels: Voxels) -> bool:
    """Whether all non-zero voxels have one value. A subset rules this out for most images."""
    few = voxels[::5, ::5, ::5]
    return _is_constant(few[few != 0]) and _is_constant(voxels[voxels != 0])


def _is_constant(values: Num[np.ndarray, " voxel"]) -> bool:
    if values.size == 0:
        return True
    low, high = float(values.min()), float(values.max())
    return high - low <= 1e-6 * max(abs(low), abs(high))
