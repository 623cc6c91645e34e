"""Dice of the tissues by zone: under the lesion, near it, and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

from multiseg.errors import UsageError
from multiseg.evaluation.metrics import SpacingMm, dice, joint_box
from multiseg.labels import IGNORE, LabelSpace
from multiseg.store.reader import Case, Database
from multiseg.types import Mask

NEAR_MM = 10.0
"""A voxel whose centre is at most so far from the centre of a lesion's voxel is near it."""
COLUMNS = ("dice_under_lesion", "dice_near_lesion", "dice_elsewhere")


@dataclass(frozen=True, eq=False)
class Zones:
    """The zones of a case, and what is true there.

    Attributes:
        masks: by column of the table; empty if nobody looked for lesions in the case.
        tissue: the tissue of each voxel, also under the lesion, by its index in `names`; 255 is ignored.
        names: of the tissues; index 1 is the first.
    """

    masks: Mapping[str, Mask]
    tissue: UInt8[np.ndarray, "i j k"]
    names: tuple[str, ...]

    def dice(self, predicted: Mask, label: str) -> dict[str, float]:
        """The Dice of a label in each zone; NaN where the zone has none of it, and for labels of lesions."""
        undefined = dict.fromkeys(COLUMNS, math.nan)
        if label not in self.names:
            return undefined
        truth = self.tissue == self.names.index(label) + 1
        looked_at = self.tissue != IGNORE
        return undefined | {
            column: dice(predicted & zone & looked_at, truth & zone) for column, zone in self.masks.items()
        }


def zone_masks(lesion: Mask, spacing_mm: SpacingMm) -> dict[str, Mask]:
    """The voxels under a lesion, within `NEAR_MM` around it, and all others, by column; without a lesion all are
    elsewhere. Distances run between voxel centres, in millimetres."""
    if not lesion.any():
        return dict(zip(COLUMNS, (lesion, lesion, ~lesion), strict=True))
    # All that is near is in this box. A map of the distances would take about 50 bytes for each of its voxels.
    box = joint_box(lesion, margin=math.ceil(NEAR_MM / min(spacing_mm)))
    outside = ~lesion[box]
    nearest = ndimage.distance_transform_edt(outside, sampling=spacing_mm, return_distances=False, return_indices=True)
    near = np.zeros_like(lesion)
    near[box] = outside & np.stack([_is_near(nearest[:, i], i, spacing_mm) for i in range(len(outside))])
    return dict(zip(COLUMNS, (lesion, near, ~lesion & ~near), strict=True))


def _is_near(nearest: Int[np.ndarray, "axis j k"], i: int, spacing_mm: SpacingMm) -> Bool[np.ndarray, "j k"]:
    """The voxels of plane `i` that are near to the voxels with these indices."""
    steps = nearest - np.stack(np.broadcast_arrays(i, *np.indices(nearest.shape[1:], sparse=True)))
    steps_mm = steps * np.asarray(spacing_mm)[:, None, None]
    is_near: Bool[np.ndarray, "j k"] = np.sqrt(np.add.reduce(steps_mm * steps_mm, axis=0)) <= NEAR_MM
    return is_near


def zones_of(database: Database, case: Case, codes: UInt8[np.ndarray, "annotation i j k"], space: LabelSpace) -> Zones:
    """The zones of a case, from its stored codes. The tissues are read without its lesions, which would hide them.

    Raises:
        UsageError: the space has no tissue.
    """
    tissues = tuple(label for label in space.labels if label.kind == "tissue")
    if not tissues:
        names = ", ".join(space.names)
        raise UsageError(f"--zones measures tissues, but the model segments only {names}: leave it out.")
    tissue = database.label_view(case, LabelSpace(tissues, rest="background")).target(codes)
    view = database.label_view(case, LabelSpace())
    masks = zone_masks(view.target(codes) == 1, case.grid.spacing_mm) if view.annotated.any() else {}
    return Zones(masks, tissue, tuple(label.name for label in tissues))


def zone_values(
    zones: Zones | None, predicted: UInt8[np.ndarray, "i j k"], label: str, space: LabelSpace
) -> dict[str, float]:
    """The columns of zones for a label of the space; none without zones."""
    return {} if zones is None else zones.dice(predicted == space.names.index(label) + 1, label)


def further_columns(with_zones: bool, own: Iterable[str]) -> tuple[str, ...]:
    """The columns of numbers beyond those of every evaluation: of zones, then of own metrics."""
    return (*(COLUMNS if with_zones else ()), *own)
