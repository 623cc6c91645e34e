"""Whether what was taken for the brain can be one: its size, its parts, where it is cut, and its sequences' agreement.

One check for every rule of the brain's mask, in ingest, in `verify` and in `predict`. Measured on eight databases of
real scans and on the phantoms:

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

from multiseg.store.preparation.boxes import Box, box_around, box_of, seen_from_outside, sizes, within
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.recipe import COMMAND
from multiseg.types import Mask

BRAIN_ML = (500.0, 2200.0)
WHOLE = 0.99
"""Of the brain's voxels: so many are one connected part."""
CUT_CM2 = {"left": 40.0, "right": 40.0, "back": 40.0, "front": 40.0, "bottom": 60.0, "top": 40.0}
"""More of a brain on a face of the image means that it was cut there; at the bottom a brain stem may be."""
ALIKE = 0.9
"""The least Dice of two sequences of one case."""
TOO_SMALL_MM, TOO_LARGE_MM, FLAT_MM = 100.0, 300.0, 90.0
"""No brain's longest side is below the first and no head's above the second; a head that is long is not flat, too."""
LONGEST_HEAD_MM = 240.0
USUAL_ML = 1300.0
USUAL_MM = (85.0, 220.0)
"""A brain, for the voxel size that a header may have lost."""


@dataclass(frozen=True, eq=False)
class Region:
    """A sequence's brain: the voxels of a box on the case's grid, and the box of space that its scan has seen."""

    box: Box
    mask: Mask
    view: Grid


@dataclass(frozen=True)
class Shape:
    """A brain in numbers: the sides of its box, the share of its largest part, and its area on the image's faces."""

    ml: float
    sides_mm: tuple[float, float, float]
    largest: float
    cut_cm2: Mapping[str, float]


def implausible(regions: Mapping[str, Region], grid: Grid, rule: str) -> Iterator[tuple[str, str]]:
    """What a person should look at, as code and text; sequences with one and the same brain are named together.

    Args:
        regions: by sequence, on the case's grid.
        rule: `Recipe.brain_mask`, for what to do.
    """
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
            who = f"{', '.join(groups[0][0])} and {', '.join(names)}"
            text = (
                f"the brains of {who} overlap by {dice:.2f} where both were scanned (Dice; at least {ALIKE} is usual)."
            )
            text += f" One may have its skull, lack a part, or lie elsewhere. {_advice(rule)}"
            yield "BRAINS_DIFFER", text


def _voxel_text(grid: Grid) -> str:
    return " x ".join(f"{mm:.3g}" for mm in grid.spacing_mm)


def shape_of(region: Region, grid: Grid) -> Shape | None:
    """The numbers of a brain on the case's grid; None where it is empty."""
    tight = box_of(region.mask)
    if tight is None:
        return None
    mask, place = region.mask[tight], seen_from_outside(tight, region.box)
    count = int(np.count_nonzero(mask))
    parts, num = ndimage.label(mask)
    largest = 1.0 if num == 1 else int(np.bincount(parts.ravel())[1:].max()) / count
    i, j, k = (n * mm for n, mm in zip(mask.shape, grid.spacing_mm, strict=True))
    return Shape(count * math.prod(grid.spacing_mm) / 1000, (i, j, k), largest, _cuts(mask, place, grid, region.view))


def _cuts(mask: Mask, place: Box, grid: Grid, view: Grid) -> dict[str, float]:
    """How much of a mask's surface touches each face of what was scanned."""
    i, j, k = (slice(part.start - 1, part.stop + 1) for part in place)
    seen = view.holds(grid.part((i, j, k)))
    for axis, part in enumerate((i, j, k)):
        at = np.arange(part.start, part.stop)
        np.moveaxis(seen, axis, 0)[(at < 0) | (at >= grid.shape[axis])] = False
    cuts, names = {}, iter(CUT_CM2)
    for axis in range(3):
        voxel_cm2 = math.prod(grid.spacing_mm) / grid.spacing_mm[axis] / 100
        for start in (0, 2):
            beside = [slice(1, -1)] * 3
            beside[axis] = slice(start, start + mask.shape[axis])
            cuts[next(names)] = float(np.count_nonzero(mask & ~seen[tuple(beside)])) * voxel_cm2
    return cuts


def agreement(one: Region, other: Region, grid: Grid) -> float:
    """Dice of two brains where both scans have seen."""
    box = box_around([one.box, other.box])
    part = grid.part(box)
    both = one.view.holds(part) & other.view.holds(part)
    first, second = (_within(region, box) & both for region in (one, other))
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return float(2 * np.count_nonzero(first & second) / total) if total else 1.0


def _within(region: Region, box: Box) -> Mask:
    whole = np.zeros(sizes(box), dtype=bool)
    whole[within(region.box, box)] = region.mask
    return whole


def _is_same(one: Region, other: Region) -> bool:
    return one.box == other.box and np.array_equal(one.mask, other.mask)


def _faults(names: str, shape: Shape, voxel_mm: str, rule: str) -> Iterator[tuple[str, str]]:
    sides = " x ".join(f"{mm:.0f}" for mm in shape.sides_mm)
    low, high = BRAIN_ML
    what = f"{names}: what counts as brain has {_volume(shape.ml)} and measures {sides} mm"
    lost = _lost_voxel_size(shape)
    if lost:
        yield "VOXEL_SIZE", f"{what}, with voxels of {voxel_mm} mm by the header. {lost} Repair the header."
    elif shape.ml > high:
        text = f"{what}; brains have {_volume(low)} to {_volume(high)}. Skull, neck or air is in it. {_advice(rule)}"
        yield "BRAIN_SIZE", text
    elif shape.ml < low:
        text = (
            f"{what}; brains have {_volume(low)} to {_volume(high)}. Is it the whole brain's mask, and this patient's?"
        )
        yield "BRAIN_SIZE", text
    cut = [f"{area:.0f} cm2 at the {side}" for side, area in shape.cut_cm2.items() if area > CUT_CM2[side]]
    if cut and not lost:
        text = (
            f"{names}: what counts as brain reaches the border of the image ({', '.join(cut)}). A part of the brain "
            f"was not scanned, or skull and neck count as brain. {_advice(rule)}"
        )
        yield "BRAIN_CUT", text
    if shape.largest < WHOLE:
        text = (
            f"{names}: what counts as brain is in several parts, the largest with {shape.largest:.1%} of it. Look at "
            f"the overlay: a part may be missing, or none of the brain. {_advice(rule)}"
        )
        yield "BRAIN_PARTS", text


def _lost_voxel_size(shape: Shape) -> str:
    """What to say where no brain or head has such a size; "" elsewhere."""
    low, high = min(shape.sides_mm), max(shape.sides_mm)
    factor = (USUAL_ML / shape.ml) ** (1 / 3)
    is_scaled = all(USUAL_MM[0] <= mm * factor <= USUAL_MM[1] for mm in shape.sides_mm)
    if (high < TOO_SMALL_MM or high > TOO_LARGE_MM) and is_scaled:
        return f"The voxel size looks lost: with voxels {factor:.2g} times as long it would be a brain of 1.3 l."
    if high > LONGEST_HEAD_MM and low < FLAT_MM:
        return "No head has such sides: the voxel size looks lost."
    return ""


def _volume(ml: float) -> str:
    return f"{ml / 1000:.2g} l" if ml >= 1000 else f"{ml:.3g} ml"


def _advice(rule: str) -> str:
    """What to do about the brain's mask."""
    better = '"command hd-bet -i {image} -o {mask}" or another skull stripper'
    if rule == "file":
        return "Look at the overlay and give a mask of the whole brain and nothing else: --brain-mask."
    if rule.startswith(COMMAND):
        return "Look at what the program made of it, or give a mask's file: --brain-mask."
    if rule == "otsu":
        return f"Otsu's threshold keeps the skull: give a mask's file or {better}: --brain-mask."
    return f"Give a mask's file, otsu (against air alone) or {better}: --brain-mask."
