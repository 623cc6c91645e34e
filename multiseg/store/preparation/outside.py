"""The value of a scan around the brain: 0, or another constant from skull stripping or a conversion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.journal import Journal
from multiseg.types import Array, Voxels

EDGE_SHARE = 0.9
"""The least share of the voxels on the box's twelve edges that have the value, even if the brain is cut off."""
FACE_SHARE = 0.5
"""The least share of the voxels on its six faces, if the edges do not agree."""


def border_value(voxels: Voxels) -> float | None:
    """The value of a scan outside the brain; None if its border has no single value, as in noisy air."""
    i, j, k = (sorted({0, n - 1}) for n in voxels.shape)
    edges = [voxels[np.ix_(i, j)], voxels[i][:, :, k], voxels[:, j][:, :, k]]
    value, share = _most_frequent(edges)
    if share >= EDGE_SHARE:
        return value
    value, share = _most_frequent([voxels[i], voxels[:, j], voxels[:, :, k]])
    return value if share >= FACE_SHARE else None


def _most_frequent(parts: list[Array]) -> tuple[float, float]:
    values, counts = np.unique(np.concatenate([part.ravel() for part in parts]), return_counts=True)
    return float(values[counts.argmax()]), float(counts.max() / counts.sum())


def subtract_outside(name: str, volume: Volume, journal: Journal) -> Volume:
    """Subtract the constant around the brain from every voxel, so that later steps find 0 outside.

    `Volume.outside` keeps the constant: the values in the file are `voxels + outside`. A scan that is constant
    everywhere is left unchanged.
    """
    value = border_value(volume.voxels)
    if not value or not np.any(volume.voxels != value):
        return volume
    text = (
        f"{name} ({volume.path.name}): its border is {value:.6g}, not 0, so voxels of this value are taken as outside "
        "the brain. If it is not background, give a brain mask: --brain-mask."
    )
    journal.note("BACKGROUND", text)
    journal.step(name, f"outside the brain it is {value:.6g}: taken as 0")
    return replace(volume, voxels=volume.voxels - np.float32(value), outside=value)
