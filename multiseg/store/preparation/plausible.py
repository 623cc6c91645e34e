"""Check whether a brain is plausible: its size, its parts, where it is cut off, and how far its sequences agree.

The check is the same for every rule of the brain mask, in ingest, `verify` and `predict`. Measured on eight databases
of real scans and on the phantoms:

                                        brains            heads with skull    phantoms (some with scalp)
    volume                              1,089-1,887 ml    2,416-8,656 ml      849-1,812 ml
    longest side of its box             150-188 mm        174-230 mm          135-175 mm
    share of the largest part           0.9995-1          0.972-1             1
    on a face of the image, bottom      0-1 cm2           136-467 cm2         1-49 cm2
    on another face                     0-30 cm2          0-446 cm2           0-38 cm2
    Dice of two sequences' own brains   0.961-1           0.869-1             0.948-1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from multiseg.store.preparation.boxes import Box, box_around, box_of, sizes, to_outer, within
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.recipe import COMMAND
from multiseg.types import Mask

BRAIN_ML = (500.0, 2200.0)
WHOLE = 0.99
"""The least share of a brain's voxels in its largest connected part."""
CUT_CM2 = {"left": 40.0, "right": 40.0, "back": 40.0, "front": 40.0, "bottom": 60.0, "top": 40.0}
"""A brain with a larger area on a face of the image is cut off there. At the bottom, a brain stem may be."""
ALIKE = 0.9
"""The least Dice of two sequences of one case."""
TOO_SMALL_MM, TOO_LARGE_MM, FLAT_MM = 100.0, 300.0, 90.0
"""No brain's longest side is below the first, no head's above the second; no long head is flatter than the third."""
LONGEST_HEAD_MM = 240.0
USUAL_ML = 1300.0
USUAL_MM = (85.0, 220.0)
"""The usual volume and sides of a brain, to estimate a lost voxel size."""


@dataclass(frozen=True, eq=False)
class Region:
    """A sequence's brain: the mask in a box of the case's grid, and the grid that was scanned (`view`)."""

    box: Box
    mask: Mask
    view: Grid


@dataclass(frozen=True)
class Shape:
    """The measures of a brain: volume, sides of its box, share of its largest part, and area on the image's faces."""

    ml: float
    sides_mm: tuple[float, float, float]
    largest: float
    cut_cm2: Mapping[str, float]


def find_implausible(regions: Mapping[str, Region], grid: Grid, rule: str) -> Iterator[tuple[str, str]]:
    """Warnings of implausible brains, as (code, text). Sequences with the same brain are named together.

    Args:
        regions: by sequence, on the case's grid.
        rule: `Recipe.brain_mask`, for the advice.
    """
    # With a mask for all sequences, they share one brain.
    groups: list[tuple[list[str], Region]] = []
    for name, region in regions.items():
        same = next((names for names, other in groups if _is_same(region, other)), None)
        if same is None:
            groups.append(([name], region))
        else:
            same.append(name)
    for names, region in groups:
        shape = shape_of(region, grid)
        if shape is not None:
            yield from _faults(", ".join(names), shape, _voxel_text(region.view), rule)
    for names, region in groups[1:]:
        dice = agreement(groups[0][1], region, grid)
        if dice < ALIKE:
            both = f"{', '.join(groups[0][0])} and {', '.join(names)}"
            text = (
                f"the brains of {both} agree with a Dice of {_down(dice):.3f} where both were scanned "
                f"(usually at least {ALIKE:.3f}). One may include skull, lack a part, or be misaligned. {_advice(rule)}"
            )
            yield "BRAINS_DIFFER", text


def _down(value: float) -> float:
    """Rounded down to three digits, so that what is below a limit never reads as the limit."""
    return math.floor(value * 1000) / 1000


def _voxel_text(grid: Grid) -> str:
    return " x ".join(f"{mm:.3g}" for mm in grid.spacing_mm)


def shape_of(region: Region, grid: Grid) -> Shape | None:
    """Measure a brain on the case's grid; None if it is empty."""
    tight = box_of(region.mask)
    if tight is None:
        return None
    mask, box = region.mask[tight], to_outer(tight, region.box)
    count = int(np.count_nonzero(mask))
    parts, num = ndimage.label(mask)
    largest = 1.0 if num == 1 else int(np.bincount(parts.ravel())[1:].max()) / count
    i, j, k = (n * mm for n, mm in zip(mask.shape, grid.spacing_mm, strict=True))
    return Shape(count * math.prod(grid.spacing_mm) / 1000, (i, j, k), largest, _cuts(mask, box, grid, region.view))


def _cuts(mask: Mask, box: Box, grid: Grid, view: Grid) -> dict[str, float]:
    """The area of a mask's surface on each face of the scanned box, in cm2."""
    # With a margin of one voxel: a voxel of the mask is on a face if its neighbour was not scanned.
    i, j, k = (slice(part.start - 1, part.stop + 1) for part in box)
    seen = view.contains(grid.part((i, j, k)))
    for axis, part in enumerate((i, j, k)):
        indices = np.arange(part.start, part.stop)
        np.moveaxis(seen, axis, 0)[(indices < 0) | (indices >= grid.shape[axis])] = False
    cuts, names = {}, iter(CUT_CM2)
    for axis in range(3):
        voxel_cm2 = math.prod(grid.spacing_mm) / grid.spacing_mm[axis] / 100
        for start in (0, 2):
            neighbours = [slice(1, -1)] * 3
            neighbours[axis] = slice(start, start + mask.shape[axis])
            cuts[next(names)] = float(np.count_nonzero(mask & ~seen[tuple(neighbours)])) * voxel_cm2
    return cuts


def agreement(first: Region, second: Region, grid: Grid) -> float:
    """The Dice overlap of two brains where both were scanned; 1 if neither has voxels there."""
    box = box_around([first.box, second.box])
    part = grid.part(box)
    scanned = first.view.contains(part) & second.view.contains(part)
    masks = [_within(region, box) & scanned for region in (first, second)]
    total = sum(np.count_nonzero(mask) for mask in masks)
    return float(2 * np.count_nonzero(masks[0] & masks[1]) / total) if total else 1.0


def _within(region: Region, box: Box) -> Mask:
    whole = np.zeros(sizes(box), dtype=bool)
    whole[within(region.box, box)] = region.mask
    return whole


def _is_same(first: Region, second: Region) -> bool:
    return first.box == second.box and np.array_equal(first.mask, second.mask)


def _faults(names: str, shape: Shape, voxel_mm: str, rule: str) -> Iterator[tuple[str, str]]:
    sides = " x ".join(f"{mm:.0f}" for mm in shape.sides_mm)
    low, high = BRAIN_ML
    usual = f"but brains have {_volume(low)} to {_volume(high)}"
    brain = f"{names}: the brain has {_volume(shape.ml)} and measures {sides} mm"
    lost = _lost_voxel_size(shape)
    if lost:
        yield "VOXEL_SIZE", f"{brain}, with voxels of {voxel_mm} mm by the header. {lost} Repair the header."
    elif shape.ml > high:
        yield "BRAIN_SIZE", f"{brain}, {usual}. It includes skull, neck or air. {_advice(rule)}"
    elif shape.ml < low:
        yield "BRAIN_SIZE", f"{brain}, {usual}. Is the mask of this patient, and of the whole brain?"
    cut = [f"{area:.0f} cm2 at the {side}" for side, area in shape.cut_cm2.items() if area > CUT_CM2[side]]
    if cut and not lost:
        text = (
            f"{names}: the brain reaches the border of the image ({', '.join(cut)}). A part of the brain was not "
            f"scanned, or skull and neck are included. {_advice(rule)}"
        )
        yield "BRAIN_CUT", text
    if shape.largest < WHOLE:
        text = (
            f"{names}: the brain has several parts, the largest with {shape.largest:.1%} of it. Look at the overlay: "
            f"something may be missing, or not be brain. {_advice(rule)}"
        )
        yield "BRAIN_PARTS", text


def _lost_voxel_size(shape: Shape) -> str:
    """Text if the size is impossible for a brain or head; otherwise ""."""
    low, high = min(shape.sides_mm), max(shape.sides_mm)
    factor = (USUAL_ML / shape.ml) ** (1 / 3)
    is_scaled = all(USUAL_MM[0] <= mm * factor <= USUAL_MM[1] for mm in shape.sides_mm)
    if (high < TOO_SMALL_MM or high > TOO_LARGE_MM) and is_scaled:
        return f"The voxel size seems lost: with voxels {factor:.2g} times as long it would be a brain of 1.3 l."
    if high > LONGEST_HEAD_MM and low < FLAT_MM:
        return "No head has these sides: the voxel size seems lost."
    return ""


def _volume(ml: float) -> str:
    return f"{ml / 1000:.2g} l" if ml >= 1000 else f"{ml:.3g} ml"


def _advice(rule: str) -> str:
    """What to do about the brain mask."""
    better = '"command hd-bet -i {image} -o {mask}" or another skull stripper'
    if rule == "file":
        return "Look at the overlay and give a mask of the whole brain and nothing else: --brain-mask."
    if rule.startswith(COMMAND):
        return "Look at what the program made of it, or give a mask's file: --brain-mask."
    if rule == "otsu":
        return f"Otsu's threshold keeps the skull: give a mask file or {better}: --brain-mask."
    return f"Give a mask file, otsu (which removes only air) or {better}: --brain-mask."
