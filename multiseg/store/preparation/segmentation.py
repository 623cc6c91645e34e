"""Recognise a segmentation that was given as a scan, by its values: few, or equal in most neighbouring voxels.

Measured on 91 scans of eight databases (8 to 16 bits, with and without skull; some also reduced to 16 to 256 levels,
subsampled and resampled), on phantoms without noise, and on label maps (masks, tissues, parcellations; also rescaled,
subsampled, and resampled linearly):

- Every scan has more than 10 values; masks, tissues and tumour labels have at most 10.
- A share s / (s + levels) of neighbouring voxels is equal, taking the least along the three axes, in all voxels or in
  those brighter than the mean. s is at most 50 in scans and 205 in phantoms; in label maps of more than 10 values it
  is at least 334, or 72 after resampling.
- Unequal neighbours differ by up to 0.8 standard deviations in scans and phantoms, and by 0.8 to 1.5 in
  parcellations, whose numbers have no order.
- Of scans scaled to 0 to 1 with 8% of voxels above 0.95, at least 15% are between 0.25 and 0.75; of partial volume
  maps at most 8% are. Smooth probability maps (of a template) cannot be told from such scans.
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
"""The largest s of scans, and the largest s of anything but label maps."""
JUMP, MANY_LEVELS = 0.9, 60
"""With more levels than the second, only in parcellations do unequal neighbours differ by more standard deviations
than the first."""
MOST_LEVELS, FINEST = 400, 4096
"""The most levels that count; and the number of levels to which values are rounded, since interpolation is inexact."""
ENOUGH = 2_000
"""The voxels, or pairs of them, that are needed to estimate a share."""
SAMPLE = 60_000
"""The voxels that are examined first; all are examined only if these look like a segmentation."""
TOP_SHARE, MIDDLE_SHARE = 0.08, 0.12


@dataclass(frozen=True)
class _Statistics:
    """Statistics of the non-zero voxels.

    Attributes:
        values: the smallest distinct values, at most `FEW_VALUES` + 1.
        equal: the share of equal neighbours.
        jump: the difference of unequal neighbours, in standard deviations.
        ends: the shares above 0.95, and between 0.25 and 0.75, if values range from 0 to 1.
    """

    values: tuple[float, ...]
    num_levels: int
    equal: float
    jump: float
    ends: tuple[float, float]

    @property
    def fault(self) -> str:
        """Why this cannot be a scan; "" if it can be."""
        if len(self.values) == 1:
            return ""
        if len(self.values) <= FEW_VALUES:
            listed = ", ".join(f"{value:.6g}" for value in self.values)
            return f"has only the values {listed}"
        is_parcellation = self.jump > JUMP and self.num_levels > MANY_LEVELS
        if self.smoothness > (SMOOTHEST if is_parcellation else SMOOTHEST_PHANTOM):
            return self._equality
        top, middle = self.ends
        if top > TOP_SHARE and middle < MIDDLE_SHARE:
            return f"ranges from 0 to 1, with only {middle:.0%} of its voxels between 0.25 and 0.75"
        return ""

    @property
    def doubt(self) -> str:
        """What is unusual for a scan, but possible."""
        return self._equality if len(self.values) > 1 and self.smoothness > SMOOTHEST else ""

    @property
    def smoothness(self) -> float:
        """s, with `equal` = s / (s + levels)."""
        return min(self.num_levels, MOST_LEVELS) * self.equal / max(1 - self.equal, 1e-6)

    @property
    def _equality(self) -> str:
        most = SMOOTHEST / (SMOOTHEST + min(self.num_levels, MOST_LEVELS))
        return f"has {self.equal:.0%} equal neighbouring voxels (scans with as many levels: {most:.0%} at most)"


def refuse_segmentation(name: str, volume: Volume, box: Box | None, journal: Journal) -> None:
    """Refuse a label map, mask or partial volume map that was given as a scan, and warn if it may be one.

    Args:
        box: of the voxels that are not 0. `brain` refuses constant images.

    Raises:
        SourceError: it is not a scan (SEGMENTATION).
    """
    if box is None:
        return
    voxels = volume.voxels[box]
    # Every `step`th voxel along each axis gives about `SAMPLE` voxels.
    step = max(1, round((voxels.size / SAMPLE) ** (1 / 3)))
    statistics = _measure(voxels, step, volume.outside)
    if step > 1 and (statistics is None or statistics.fault or statistics.doubt):
        statistics = _measure(voxels, 1, volume.outside)
    if statistics is not None and statistics.fault:
        message = (
            f"{name} ({volume.path}) {statistics.fault}. It is a segmentation, a mask or a probability map, not a "
            "scan. Leave it out: --modality NAME=skip, or give it as a label: --label."
        )
        raise SourceError(message, code="SEGMENTATION", file=str(volume.path))
    if statistics is not None and statistics.doubt:
        text = f"{name} ({volume.path.name}) {statistics.doubt}."
        journal.warn("SEGMENTATION", f"{text} If it is not a scan, leave it out: --modality NAME=skip.")


def _measure(voxels: Voxels, step: int, outside: float) -> _Statistics | None:
    """Statistics of every `step`th voxel along each axis; None if too few of them are not 0."""
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
    return _Statistics(few, levels, equal, jump, ends)


def _neighbours(voxels: Voxels, step: int, tolerance: float, inside: Num[np.ndarray, " voxel"]) -> tuple[float, float]:
    """The share of equal neighbours, and the jump of unequal ones: the least of the three axes.

    The least, also of all voxels and bright ones: repeated slices, air and saturated tissue have equal neighbours in
    scans too.
    """
    mean, std = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    shares, jumps = [], []
    for axis in range(3):
        lines = np.moveaxis(voxels, axis, 0)
        first, second = lines[:-1:step, ::step, ::step], lines[1::step, ::step, ::step]
        both = (first != 0) & (second != 0)
        left, right = first[both].astype(np.float32), second[both].astype(np.float32)
        if left.size < ENOUGH / 20:
            continue
        differences = np.abs(left - right)
        equal, bright = differences <= tolerance / 2, (left >= mean) & (right >= mean)
        shares += [float(equal.mean()), float(equal[bright].mean()) if bright.any() else 1.0]
        jumps.append(0.0 if equal.all() else float(differences[~equal].mean(dtype=np.float64)) / std)
    return min(shares, default=0.0), min(jumps, default=0.0)
