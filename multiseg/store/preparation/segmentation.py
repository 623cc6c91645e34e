"""A segmentation that was taken for a scan, told by its values: few ones, or the same one in most neighbours.

Measured on 91 scans of eight databases (8 to 16 bits, with and without skull; some of them also brought to 16 to 256
levels, thinned and resampled) and on label maps (masks, tissues, parcellations; also on other scales, thinned, and
resampled linearly):

- No scan has 10 values or fewer; masks, tissues and tumour labels have no more.
- Of neighbouring voxels a share is equal: along the axis, and in all or in what is brighter than the mean, where it is
  least, at most 49 / (49 + levels) in scans, and at least 64 / (64 + levels) in label maps of more than 10 values.
- Of a scan brought to 0 to 1 at least 15% lie between 0.25 and 0.75 where 8% lie above 0.95; of maps of partial volume
  at most 8% do. Smooth maps of probability (a template's) cannot be told from such a scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import Box
from multiseg.types import Voxels

FEW_VALUES = 10
SMOOTHEST = 60
"""A scan with so many levels has, at the very most, half of its neighbours equal."""
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

    `values` are the first distinct ones, one more than are few; `equal` is the share of equal neighbours, `ends` are
    those above 0.95 and between 0.25 and 0.75, where values go from 0 to 1.
    """

    values: tuple[float, ...]
    num_levels: int
    equal: float
    ends: tuple[float, float]

    @property
    def fault(self) -> str:
        if len(self.values) == 1:
            return ""
        if len(self.values) <= FEW_VALUES:
            listed = ", ".join(f"{value:.6g}" for value in self.values)
            return f"holds only the values {listed}"
        most = SMOOTHEST / (SMOOTHEST + min(self.num_levels, MOST_LEVELS))
        if self.equal > most:
            return f"is the same in {self.equal:.0%} of neighbouring voxels (a scan of its kind: {most:.0%} at most)"
        top, middle = self.ends
        if top > TOP_SHARE and middle < MIDDLE_SHARE:
            return f"goes from 0 to 1, with only {middle:.0%} of its voxels between 0.25 and 0.75"
        return ""


def refuse_segmentation(name: str, volume: Volume, box: Box | None) -> None:
    """Whether a scan is one, and no label map, mask or map of partial volume.

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
    if step > 1 and (look is None or look.fault):
        look = _look(voxels, 1, volume.outside)
    if look is not None and look.fault:
        raise SourceError(
            f"{name} ({volume.path}) {look.fault}. That is a segmentation, a mask or a probability map, and no "
            "scan. Leave it out by --modality NAME=skip, or give it as a label: --label.",
            code="SEGMENTATION",
            file=str(volume.path),
        )


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
    return _Look(few, levels, _equal_share(voxels, step, 1 / scale, float(inside.mean(dtype=np.float64))), ends)


def _equal_share(voxels: Voxels, step: int, tolerance: float, mean: float) -> float:
    """The share of neighbours inside that are equal: along the axis, and in all or the bright ones, where it is least.

    Slices that were repeated, air and saturated tissue have equal neighbours in scans, too.
    """
    shares = []
    for axis in range(3):
        lines = np.moveaxis(voxels, axis, 0)
        first, second = lines[:-1:step, ::step, ::step], lines[1::step, ::step, ::step]
        both = (first != 0) & (second != 0)
        one, other = first[both].astype(np.float32), second[both].astype(np.float32)
        equal = np.abs(one - other) <= tolerance / 2
        bright = (one >= mean) & (other >= mean)
        if equal.size >= ENOUGH / 20:
            shares += [float(equal.mean()), float(equal[bright].mean()) if bright.any() else 1.0]
    return min(shares, default=0.0)
