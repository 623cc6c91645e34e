"""The one slice of a case that a picture shows: a whole case may have a gigabyte, and a picture shows many cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from scipy import ndimage

from multiseg.evaluation.case_panel import CasePanel, Image, Parcels

Plane: TypeAlias = Shaped[np.ndarray, "i j"]


@dataclass(frozen=True)
class View:
    """The part of a volume that is shown: the axial slice k, and the box of its in-plane voxels."""

    i: slice
    j: slice
    k: int


@dataclass(frozen=True, eq=False)
class ParcelsSlice:
    """A slice of `Parcels`.

    Attributes:
        present: the names of all structures of the volume, not only of the slice.
    """

    codes: UInt8[np.ndarray, "i j"]
    names: tuple[str, ...]
    present: frozenset[str]


@dataclass(frozen=True, eq=False)
class SlicePanel:
    """What a montage draws of a `CasePanel`.

    Attributes:
        view: None if the case has no image.
        greys: the slice of each sequence, from 0 to 1 in the grey window of its volume.
    """

    name: str
    caption: str
    values: dict[str, str]
    spacing_mm: tuple[float, float, float]
    view: View | None
    greys: dict[str, Float[np.ndarray, "i j"]]
    truth: Bool[np.ndarray, "i j"] | None
    predicted: Bool[np.ndarray, "i j"] | None
    parcels: dict[str, ParcelsSlice]


def slice_of(panel: CasePanel) -> SlicePanel:
    """The slice of a case that shows most, see `choose_view`. It holds copies, so that the volumes can leave."""
    view = choose_view(panel) if panel.images else None
    k = view.k if view else 0
    truth, predicted = (None if mask is None else mask[:, :, k].copy() for mask in (panel.truth, panel.predicted))
    return SlicePanel(
        name=panel.name,
        caption=panel.caption,
        values=panel.values,
        spacing_mm=panel.spacing_mm,
        view=view,
        greys={name: grey_window(image)[:, :, k].copy() for name, image in panel.images.items()},
        truth=truth,
        predicted=predicted,
        parcels={name: _slice_of_parcels(parcels, k) for name, parcels in panel.parcels.items()},
    )


def _slice_of_parcels(parcels: Parcels, k: int) -> ParcelsSlice:
    present = frozenset(parcels.names[code - 1] for code in np.unique(parcels.codes) if code)
    return ParcelsSlice(parcels.codes[:, :, k].copy(), parcels.names, present)


def choose_view(panel: CasePanel) -> View:
    """The axial slice on which truth and prediction together are largest; for several structures the one with the
    largest sum of their areas, relative to their maxima; without any structure the middle of the brain."""
    brain = np.any([image != 0 for image in panel.images.values()], axis=0)
    lesion = np.zeros_like(brain)
    for mask in (panel.truth, panel.predicted):
        if mask is not None:
            lesion |= mask
    area = lesion.sum(axis=(0, 1)).astype(float)
    if not area.any():
        area += sum(_shares(parcels) for parcels in panel.parcels.values())
    shown = brain | lesion
    ((along_i, along_j, along_k),) = ndimage.find_objects((shown if shown.any() else ~shown).view(np.uint8))
    k = int(area.argmax()) if area.any() else (along_k.start + along_k.stop) // 2
    return View(along_i, along_j, k)


def _shares(parcels: Parcels) -> Float[np.ndarray, " k"]:
    """For every slice, the sum over structures of their area as a share of their largest area in any slice."""
    total = np.zeros(parcels.codes.shape[2])
    for code in np.unique(parcels.codes):
        if code:
            area = (parcels.codes == code).sum(axis=(0, 1))
            total += area / area.max()
    return total


def grey_window(image: Image) -> Image:
    """Grey values from 0 to 1. Zeros are background and stay black, also in images with negative values."""
    values = image.astype(np.float32)
    inside = np.isfinite(values) & (values != 0)
    if not inside.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[inside], (1, 99.5))
    scale = max(float(high - low), float(np.finfo(np.float32).tiny))
    grey: Image = np.clip((np.where(inside, values, low) - low) / scale, 0, 1).astype(np.float32)
    return grey
