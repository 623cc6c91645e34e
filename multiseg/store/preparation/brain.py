"""Where the brain is: a mask given with the case, made from the reference image, or each sequence's non-zero voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Num
from scipy import ndimage

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import Box, box_of, seen_from_outside
from multiseg.store.preparation.extraction import run_extraction
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.outside import border_value
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.plausible import Region, implausible
from multiseg.store.preparation.recipe import COMMAND, Recipe
from multiseg.store.preparation.similarity import coarse
from multiseg.store.preparation.space import Scene
from multiseg.types import Mask, Voxels

STRIPPED_SHARE = 0.8
"""A brain with zeros around it fills about half of its box; beyond this share there is more than brain."""
OTSU_MM, CLOSING_MM = 3.0, 9.0
"""Voxels that the head is found on; gaps in its outline, such as the skull's, that are closed."""


@dataclass(frozen=True, eq=False)
class Located:
    """A part of the case's grid, which `box` says, and what lies there: raw values, and the voxels that count.

    `values` are 0 outside the brain; `values + outside` are the file's.
    """

    box: Box
    values: Voxels
    mask: Mask
    outside: float = 0.0


def brains(scene: Scene, recipe: Recipe, journal: Journal) -> dict[str, Located]:
    """Every sequence on the case's grid, with the voxels that are its brain.

    Raises:
        SourceError: there is no mask where the recipe needs one, it is none, or it is empty; or a sequence
            is 0 in all of the brain, or shows one value only.
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
            "the brain is to be the mask given with each case, but this case has none. Add its mask, or choose "
            "another rule: --brain-mask nonzero or otsu.",
            code="NO_BRAIN_MASK",
        )
    box, brain = _on_grid(mask, scene.grid, journal)
    if rule == "file":
        _journal_lattice("brain_mask", mask, scene.grid, journal)
    return {name: _masked(name, scene, box, brain, journal) for name in scene.names}


def doubt_brains(places: Mapping[str, Located], scene: Scene, recipe: Recipe, journal: Journal) -> None:
    """Warnings of brains that cannot be ones; see `plausible`."""
    regions = {name: Region(one.box, one.mask, grid_of(scene.volumes[name])) for name, one in places.items()}
    journal.warn_all(implausible(regions, scene.grid, recipe.brain_mask))


def _mask_of_reference(scene: Scene, rule: str, journal: Journal) -> Volume:
    reference = scene.volumes[scene.reference]
    if rule.startswith(COMMAND):
        voxels, said = run_extraction(rule.removeprefix(COMMAND), reference, scene.home.path)
        path = reference.path.with_name(f"the mask of {reference.path.name}")
    else:
        # Around a stripped brain, what is far from the outside's value counts, be it darker or brighter.
        is_stripped = border_value(reference.voxels) == 0
        bright = np.abs(reference.voxels) if is_stripped else reference.voxels
        voxels, said = otsu_head(bright, grid_of(reference)), "Otsu's threshold"
        path = reference.path.with_name(f"the head in {reference.path.name}")
    journal.step(scene.reference, f"brain mask made from it by {said}")
    return replace(reference, voxels=voxels.astype(np.uint8), path=path)


def otsu_head(voxels: Voxels, grid: Grid) -> Mask:
    """What is brighter than air: the brain where it is stripped of its skull, the whole head where it is not.

    Otsu's threshold (1979) between dark and bright, gaps up to 9 mm closed, the largest connected part, its
    holes filled in space and in every slice; found on voxels of 3 mm.
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
        for at in range(head.shape[axis]):
            plane = head.take(at, axis)
            np.moveaxis(head, axis, 0)[at] = ndimage.binary_fill_holes(plane)
    return resample(ndimage.binary_fill_holes(head).astype(np.float32), rough, grid, smooth=False) > 0.5


def _otsu(values: Voxels) -> float:
    """The threshold that leaves the least variance within the dark and the bright voxels (Otsu 1979)."""
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    counts, edges = np.histogram(values, 256, (low, high) if high > low else (low, low + 1))
    middle = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(edges[1 + int(np.argmax(np.nan_to_num(between)))])


def _on_grid(volume: Volume, grid: Grid, journal: Journal) -> tuple[Box, Mask]:
    """A mask's box on the case's grid, and what of it is brain."""
    box = box_of(volume.voxels != 0)
    inside = None if box is None else volume.voxels[box]
    if inside is not None and np.any(np.abs(inside - np.rint(inside)) > 0.01):
        raise SourceError(
            f"{volume.path} holds values that are no whole numbers, so it is an image and no brain mask. Give a mask "
            "of 0 and 1, or a parcellation.",
            code="NOT_A_MASK",
            file=str(volume.path),
        )
    source = grid_of(volume)
    region = None if box is None else source.box_on(grid, box)
    if region is not None:
        whole = (volume.voxels > 0.5).astype(np.float32)
        mask = resample(whole, source, grid.part(region), smooth=False) > 0.5
        tight = box_of(mask)
    if region is None or tight is None:
        raise SourceError(
            f"{volume.path} holds no voxel above 0.5 where the images are: no brain is left.",
            code="EMPTY_BRAIN",
            file=str(volume.path),
        )
    mask = mask[tight]
    return seen_from_outside(tight, region), mask


def _masked(name: str, scene: Scene, box: Box, brain: Mask, journal: Journal) -> Located:
    volume, part = scene.volumes[name], scene.grid.part(box)
    source = grid_of(volume)
    values = resample(volume.voxels, source, part)
    _journal_lattice(name, volume, scene.grid, journal)
    mask = brain & source.holds(part)
    _check_contrast(name, volume, values[mask])
    return Located(box, values, mask, volume.outside)


def _nonzero(name: str, scene: Scene, journal: Journal) -> Located:
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
        # What the zeros around the brain took away at its border is given back.
        values /= np.maximum(resample(inside, source, part), 0.25)
    _check_contrast(name, volume, values[mask])
    share = np.count_nonzero(nonzero) / volume.voxels.size
    if share > STRIPPED_SHARE:
        journal.warn("NO_BACKGROUND", f"{name}: {share:.0%} of the voxels are not zero, so skull and air count as "
                     "brain. Give a brain mask: --brain-mask.")  # fmt: skip
    return Located(region, values, mask, volume.outside)


def _journal_lattice(role: str, volume: Volume, grid: Grid, journal: Journal) -> None:
    if not grid_of(volume).shares_lattice(grid):
        journal.step(role, f"resampled from {spacing_text(grid_of(volume))} to {spacing_text(grid)} (linear)")


def spacing_text(grid: Grid) -> str:
    """A voxel size for people to read."""
    return " x ".join(f"{mm:.4g}" for mm in grid.spacing_mm) + " mm"


def _empty(name: str, volume: Volume) -> SourceError:
    message = f"{name} ({volume.path}) is 0 everywhere in the brain."
    return SourceError(message, code="EMPTY_IMAGE", file=str(volume.path))


def _check_contrast(name: str, volume: Volume, values: Num[np.ndarray, " voxel"]) -> None:
    if values.size == 0:
        raise _empty(name, volume)
    # A mask's own border has contrast once it is resampled, so its voxels are looked at as well.
    if _is_constant(values) or _is_flat(volume.voxels):
        mean = float(values.mean(dtype=np.float64)) + volume.outside
        message = f"{name} ({volume.path}) is constant ({mean:.6g}) in the brain. Is this a mask?"
        raise SourceError(message, code="CONSTANT_IMAGE", file=str(volume.path))


def _is_flat(voxels: Voxels) -> bool:
    """Whether all voxels that are not zero have one value; a few tell most images from such a one."""
    few = voxels[::5, ::5, ::5]
    return _is_constant(few[few != 0]) and _is_constant(voxels[voxels != 0])


def _is_constant(values: Num[np.ndarray, " voxel"]) -> bool:
    if values.size == 0:
        return True
    low, high = float(values.min()), float(values.max())
    return high - low <= 1e-6 * max(abs(low), abs(high))
