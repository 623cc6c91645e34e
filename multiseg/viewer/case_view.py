"""What the page shows of one case: sequences as whole numbers, overlays, lesions, and how to read a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int16, Num, UInt8
from scipy import ndimage

from multiseg.evaluation.lesions import TOUCHING
from multiseg.store.findings import Finding
from multiseg.store.preparation.grids import Grid
from multiseg.types import Codes, Index3

OUTSIDE = -32768
"""The whole number of a voxel outside the brain. The page shows it black and without an intensity."""
SEEN = (1, 99.5)
"""The percentiles of the first slice that are black and white, as in the pictures."""
MOST_LESIONS = 100
"""Lesions that the page lists, the largest first."""
Planes: TypeAlias = tuple[Int16[np.ndarray, "sequence i j k"], UInt8[np.ndarray, "overlay i j k"]]
ReadPlanes: TypeAlias = Callable[[int, int], Planes]
"""Reads the axial slices from the first to before the last."""


@dataclass(frozen=True)
class ListedCase:
    """One line of the list.

    Attributes:
        flags: short words to filter by, such as "no lesion" or the code of a doubt.
        dice: the expected or the measured Dice, which orders the list; None if there is none.
        problem: why the case cannot be shown; "" if it can.
    """

    name: str
    database: str
    person: str = ""
    visit: str = ""
    split: str = ""
    pathology: str = ""
    sequences: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    dice: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class SequenceView:
    """One sequence: intensity = number * slope + intercept; black and white are intensities."""

    name: str
    slope: float
    intercept: float
    black: float
    white: float


@dataclass(frozen=True)
class StructureView:
    """One structure of an overlay. `ml` is None where nobody has counted it yet."""

    code: int
    name: str
    kind: str
    colour: str
    ml: float | None = None


@dataclass(frozen=True)
class OverlayView:
    """An annotation or a prediction."""

    name: str
    is_prediction: bool
    structures: tuple[StructureView, ...]


@dataclass(frozen=True)
class LesionPlace:
    """One connected lesion: its volume, a voxel in it, and the mean probability where a model has said one."""

    overlay: str
    structure: str
    ml: float
    voxel: Index3
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class CaseView:
    """One case, opened: all but its voxels.

    Attributes:
        start: the voxel that is shown first.
        slab: the number of axial slices that are read at once.
        facts: what else is known of the case, by name.
        notes: sentences about what is shown, which a person should read.
    """

    name: str
    grid: Grid
    start: Index3
    sequences: tuple[SequenceView, ...]
    overlays: tuple[OverlayView, ...]
    planes: ReadPlanes
    slab: int = 32
    facts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.grid.shape),
            "affine": self.grid.affine.tolist(),
            "spacing_mm": list(self.grid.spacing_mm),
            "start": list(self.start),
            "slab": self.slab,
            "sequences": [vars(sequence) for sequence in self.sequences],
            "overlays": [
                {**vars(overlay), "structures": [vars(part) for part in overlay.structures]}
                for overlay in self.overlays
            ],
            "facts": self.facts,
            "notes": list(self.notes),
        }


@runtime_checkable
class Cases(Protocol):
    """The cases that a page shows: of a store, of a run, or of a folder of predictions.

    Attributes:
        title: what they are.
        dice_word: what `dice` of the listed cases is, "expected" or "measured"; "" if they have none.
    """

    title: str
    dice_word: str
    listed: Sequence[ListedCase]

    def view(self, name: str) -> CaseView:
        """Open a case.

        Raises:
            MultisegError: it cannot be read.
        """

    def findings(self, name: str) -> tuple[list[Finding], list[LesionPlace]]:
        """What a person should know of a case, and its lesions. This may read all of its voxels."""


@runtime_checkable
class Answering(Protocol):
    """Cases of a run, whose model segments one when a person asks for it."""

    def answer(self, name: str) -> None:
        """Segment a case; from then on its view has the answer."""


def window_bytes(planes: Planes) -> bytes:
    """Voxels as the page reads them: every sequence as int16, then every overlay as uint8, k slowest, little-endian."""
    images, codes = planes
    order = "volume i j k -> volume k j i"
    parts = (rearrange(images, order).astype("<i2", order="C"), np.ascontiguousarray(rearrange(codes, order)))
    return b"".join(part.tobytes() for part in parts)


def seen_range(numbers: Int16[np.ndarray, "i j"]) -> tuple[float, float]:
    """Which of the whole numbers of a slice are black and white: `SEEN` of those in the brain."""
    inside = numbers[numbers != OUTSIDE]
    if not inside.size:
        return -512.0, 1024.0
    low, high = (float(value) for value in np.percentile(inside, SEEN))
    return low, high if high > low else low + 1


def lesion_places(codes: Codes, overlay: OverlayView, voxel_ml: float) -> list[LesionPlace]:
    """The lesions of an overlay, each a connected part (26 neighbours) of one structure; the largest first."""
    places = []
    for structure in overlay.structures:
        if structure.kind != "lesion":
            continue
        parts, num = ndimage.label(codes == structure.code, TOUCHING)
        sizes = np.bincount(parts.ravel(), minlength=num + 1)
        for index, box in enumerate(ndimage.find_objects(parts), start=1):
            inside = np.argwhere(parts[box] == index) + [part.start for part in box]
            voxel = central_voxel(inside)
            places.append(LesionPlace(overlay.name, structure.name, float(sizes[index]) * voxel_ml, voxel))
    return sorted(places, key=lambda place: -place.ml)[:MOST_LESIONS]


def central_voxel(voxels: Num[np.ndarray, "point 3"]) -> Index3:
    """Of some voxels the one that is nearest to the centre of those in the slice k with the most of them."""
    slices, counts = np.unique(voxels[:, 2], return_counts=True)
    chosen = voxels[voxels[:, 2] == slices[counts.argmax()]]
    i, j, k = chosen[np.square(chosen - chosen.mean(axis=0)).sum(axis=1).argmin()]
    return int(i), int(j), int(k)


def with_answer(view: CaseView, overlay: OverlayView, codes: Codes) -> CaseView:
    """A case with a further overlay, a whole volume on its grid."""

    def planes(first: int, last: int) -> Planes:
        images, others = view.planes(first, last)
        return images, np.concatenate([others, codes[None, :, :, first:last]])

    return replace(view, overlays=(*view.overlays, overlay), planes=planes)


def whole_numbers(
    intensities: Float[np.ndarray, "i j k"],
) -> tuple[Int16[np.ndarray, "i j k"], float, float]:
    """Intensities as whole numbers with their slope and intercept; 0, and what is not finite, is OUTSIDE."""
    inside = np.isfinite(intensities) & (intensities != 0)
    if not inside.any():
        return np.full(intensities.shape, OUTSIDE, dtype=np.int16), 1.0, 0.0
    low, high = float(intensities[inside].min()), float(intensities[inside].max())
    slope, middle = max((high - low) / 65000, 1e-12), (high + low) / 2
    numbers = np.rint((np.where(inside, intensities, middle) - middle) / slope).astype(np.int16)
    return np.where(inside, numbers, np.int16(OUTSIDE)), slope, middle
