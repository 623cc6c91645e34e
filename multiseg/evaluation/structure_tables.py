"""What a segmentation holds, as rows of tables: the volume of each structure, and each lesion by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from scipy import ndimage

from multiseg.evaluation.lesions import TOUCHING
from multiseg.labels import LabelSpace
from multiseg.store.formats.volumes import voxel_size_mm
from multiseg.types import Affine


@dataclass(frozen=True)
class StructureRow:
    """One structure of one case.

    Attributes:
        lesions: the number of its connected parts, if it is a kind of lesion.
        expected_dice: see `reliability.expected_dice`; None if it is undefined, or of an older multiseg.
    """

    structure: str
    kind: str
    ml: float
    lesions: int | None
    expected_dice: float | None = None


@dataclass(frozen=True)
class LesionRow:
    """One lesion. Lesions of a structure are numbered from the largest to the smallest.

    Attributes:
        x_mm, y_mm, z_mm: its centre of mass in the world coordinates of the NIfTI file (RAS+).
        i_first, i_last ...: the first and the last voxel along each axis of the file, counted from 0.
        mean_probability: of the structure, over its voxels.
    """

    structure: str
    lesion: int
    ml: float
    x_mm: float
    y_mm: float
    z_mm: float
    i_first: int
    i_last: int
    j_first: int
    j_last: int
    k_first: int
    k_last: int
    mean_probability: float


def rows_of_segmentation(
    codes: Num[np.ndarray, "i j k"],
    affine: Affine,
    probabilities: Float[np.ndarray, "label i j k"],
    space: LabelSpace,
) -> tuple[list[StructureRow], list[LesionRow]]:
    """The rows of all structures, in their order.

    Args:
        codes: 0 background, 1.. the structures; on the same voxels as `probabilities`.
    """
    ml = float(np.prod(voxel_size_mm(affine))) / 1000
    structures: list[StructureRow] = []
    lesions: list[LesionRow] = []
    for index, label in enumerate(space.labels):
        mask = codes == index + 1
        found = _lesions(mask, affine, probabilities[index], label.name, ml) if label.kind == "lesion" else None
        num = None if found is None else len(found)
        structures.append(StructureRow(label.name, label.kind, float(np.count_nonzero(mask)) * ml, num))
        lesions += found or []
    return structures, lesions


def _lesions(
    mask: Any, affine: Affine, probability: Float[np.ndarray, "i j k"], structure: str, ml: float
) -> list[LesionRow]:
    parts, num = ndimage.label(mask, TOUCHING)
    boxes = ndimage.find_objects(parts)
    sizes = np.bincount(parts.ravel(), minlength=num + 1)[1:]
    order = sorted(range(num), key=lambda index: (-sizes[index], index))
    rows = []
    for number, index in enumerate(order, start=1):
        box = boxes[index]
        inside = parts[box] == index + 1
        first = np.array([part.start for part in box])
        centre = affine[:3, :3] @ (np.argwhere(inside).mean(axis=0) + first) + affine[:3, 3]
        x, y, z = (float(mm) for mm in centre)
        bounds = {f"{axis}_first": part.start for axis, part in zip("ijk", box, strict=True)}
        bounds |= {f"{axis}_last": part.stop - 1 for axis, part in zip("ijk", box, strict=True)}
        mean = float(probability[box][inside].mean(dtype=np.float64))
        ml_of_lesion = float(sizes[index]) * ml
        rows.append(LesionRow(structure, number, ml_of_lesion, x, y, z, **bounds, mean_probability=mean))
    return rows
