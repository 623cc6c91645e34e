"""What a scan holds around the brain: 0, or another constant that stripping or a conversion has left there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.journal import Journal
from multiseg.types import Array, Voxels

EDGE_SHARE = 0.9
"""Of the voxels on the twelve edges of the box: so many have the value of the outside, even where a brain is cut."""
FACE_SHARE = 0.5
"""Of the voxels on its six faces, where the edges do not agree."""


def border_value(voxels: Voxels) -> float | None:
    """The value that a scan has outside the brain, or None where its border has no single one, as in noisy air."""
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


def counted_from_outside(name: str, volume: Volume, journal: Journal) -> Volume:
    """The scan with the constant around its brain taken off every voxel, so that outside is 0 for every later step.

    `Volume.outside` keeps the constant: the file's values are `voxels + outside`. A scan that is that constant
    everywhere stays as it is.
    """
    value = border_value(volume.voxels)
    if not value or not np.any(volume.voxels != value):
        return volume
    text = (
        f"{name} ({volume.path.name}): its border is {value:.6g} and not 0; voxels of this value count as outside the "
        "brain. If this is no background, give a brain mask: --brain-mask."
    )
    journal.note("BACKGROUND", text)
    journal.step(name, f"outside the brain it is {value:.6g}: taken as 0")
    return replace(volume, voxels=volume.voxels - np.float32(value), outside=value)
