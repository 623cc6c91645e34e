"""A segmentation that was taken for a scan, told by its values: few ones, or the same one in most neighbours.

Measured on 91 scans of eight databases (8 to 16 bits, with and without skull; some of them also brought to 16 to 256
levels, thinned and resampled), on phantoms without noise, and on label maps (masks, tissues, parcellations; also on
other scales, thinned, and resampled linearly):

- No scan has 10 values or fewer; masks, tissues and tumour labels have no more.
- A share s / (s + levels) of neighbouring voxels is equal: along the axis, and in all or in what is brighter than the
  mean, where it is least. s is at most 50 in scans and 205 in phantoms; it is 334 and more in label maps of more than
  10 values as they are, 72 and more where they were resampled.
- Where neighbours differ, they do so by up to 0.8 standard deviations in scans and phantoms; in parcellations, whose
  numbers have no order, by 0.8 to 1.5.
- Of a scan brought to 0 to 1 at least 15% lie between 0.25 and 0.75 where 8% lie above 0.95; of maps of partial volume
  at most 8% do. Smooth maps of probability (a template's) cannot be told from such a scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import Box
from multiseg.store.preparation.journal import Journal
from multiseg.types import Voxels

FEW_VALUES = 10
SMOOTHEST, SMOOTHEST_PHANTOM = 60, 220
"""s, above which no scan is known, and above which nothing is known but label maps."""
JUMP, MANY_LEVELS = 0.9, 60
"""Standard deviations by which unequal neighbours differ in parcellations alone, where there are more levels."""
MOST_LEVELS, FINEST = 400, 4096
"""Levels beyond the first do not count; values nearer than a part in the second are the same (interpolation rounds)."""
ENOUGH = 2_000
"""Voxels inside, or pairs of them, that a share is told from."""
SAMPLE = 60_000
"""Voxels that are looked at first; all of them only where these look like a segmentation."""
TOP_SHARE, MIDDLE_SHARE = 0.08, 0.12


@dataclass(frozen=True)
class _Look:
    """What the voxels inside show.

    `values` are the first distinct ones, one more than are few; `equal` is the share of equal neighbours, `jump` how
    far unequal ones are apart, in standard deviations; `ends` are
    those above 0.95 and between 0.25 and 0.75, where values go from 0 to 1.
    """

    values: tuple[float, ...]
    num_levels: int
    equal: float
    jump: float
    ends: tuple[float, float]

    @property
    def fault(self) -> str:
        """What no scan has; "" for a scan."""
        if len(self.values) == 1:
            return ""
        if len(self.values) <= FEW_VALUES:
            listed = ", ".join(f"{value:.6g}" for value in self.values)
            return f"holds only the values {listed}"
        is_parcellation = self.jump > JUMP and self.num_levels > MANY_LEVELS
        if self.smoothness > (SMOOTHEST if is_parcellation else SMOOTHEST_PHANTOM):
            return self._equality
        top, middle = self.ends
        if top > TOP_SHARE and middle < MIDDLE_SHARE:
            return f"goes from 0 to 1, with only {middle:.0%} of its voxels between 0.25 and 0.75"
        return ""

    @property
    def doubt(self) -> str:
        """What is unusual, and no more."""
        return self._equality if len(self.values) > 1 and self.smoothness > SMOOTHEST else ""

    @property
    def smoothness(self) -> float:
        """s, where `equal` is s / (s + levels)."""
        return min(self.num_levels, MOST_LEVELS) * self.equal / max(1 - self.equal, 1e-6)

    @property
    def _equality(self) -> str:
        most = SMOOTHEST / (SMOOTHEST + min(self.num_levels, MOST_LEVELS))
        return f"is the same in {self.equal:.0%} of neighbouring voxels (scans of as many levels: {most:.0%} at most)"


def refuse_segmentation(name: str, volume: Volume, box: Box | None, journal: Journal) -> None:
    """Whether a scan is one, and no label map, mask or map of partial volume; a warning where that is not certain.

    Args:
        box: around the voxels that are not 0. One value only is `brain`'s to refuse.

    Raises:
        SourceError: it is none (SEGMENTATION).
    """
    if box is None:
        return
    voxels = volume.voxels[box]
    step = max(1, round((voxels.size / SAMPLE) ** (1 / 3)))
    look = _look(voxels, step, volume.outside)
    if step > 1 and (look is None or look.fault or look.doubt):
        look = _look(voxels, 1, volume.outside)
    if look is not None and look.fault:
        raise SourceError(
            f"{name} ({volume.path}) {look.fault}. That is a segmentation, a mask or a probability map, and no "
            "scan. Leave it out by --modality NAME=skip, or give it as a label: --label.",
            code="SEGMENTATION",
            file=str(volume.path),
        )
    if look is not None and look.doubt:
        text = f"{name} ({volume.path.name}) {look.doubt}. Is it a scan? If not, leave it out: --modality NAME=skip."
        journal.warn("SEGMENTATION", text)


def _look(voxels: Voxels, step: int, outside: float) -> _Look | None:
    """None where too few voxels lie inside for a judgement from every `step`th."""
    points = voxels[::step, ::step, ::step]
    inside = points[points != 0]
    if inside.size < ENOUGH and step > 1:
        return None
    values = np.unique(inside)
    low, high = (float(value) for value in np.percentile(inside, (0.5, 99.5)))
    scale = (FINEST - 1) / (high - low) if high > low else 1.0
    levels = np.unique(np.rint((np.clip(inside, low, high) - low) * scale)).size
    few = tuple(float(value) + outside for value in values[: FEW_VALUES + 1])
    ends = (0.0, 1.0)
    if values[0] > 0 and abs(values[-1] - 1) < 0.01:
        ends = float(np.mean(inside > 0.95)), float(np.mean((inside > 0.25) & (inside < 0.75)))
    equal, jump = _neighbours(voxels, step, 1 / scale, inside)
    return _Look(few, levels, equal, jump, ends)


def _neighbours(voxels: Voxels, step: int, tolerance: float, inside: Num[np.ndarray, " voxel"]) -> tuple[float, float]:
    """The share of neighbours inside that are equal, and the jump of those that are not, where each is least.

    Slices that were repeated, air and saturated tissue have equal neighbours in scans, too.
    """
    mean, std = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    shares, jumps = [], []
    for axis in range(3):
        lines = np.moveaxis(voxels, axis, 0)
        first, second = lines[:-1:step, ::step, ::step], lines[1::step, ::step, ::step]
        both = (first != 0) & (second != 0)
        one, other = first[both].astype(np.float32), second[both].astype(np.float32)
        if one.size < ENOUGH / 20:
            continue
        apart = np.abs(one - other)
        equal, bright = apart <= tolerance / 2, (one >= mean) & (other >= mean)
        shares += [float(equal.mean()), float(equal[bright].mean()) if bright.any() else 1.0]
        jumps.append(0.0 if equal.all() else float(apart[~equal].mean(dtype=np.float64)) / std)
    return min(shares, default=0.0), min(jumps, default=0.0)
