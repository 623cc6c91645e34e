"""Placing a case's sequences on the channels of the shared axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from multiseg.modalities import ModalityAxis


def place(
    images: Float[np.ndarray, "own i j k"],
    names: Sequence[str],
    kept: Sequence[str],
    axis: ModalityAxis,
) -> tuple[Float[np.ndarray, "modality i j k"], Bool[np.ndarray, " modality"]]:
    """The images of the kept sequences on their channels, 0 on all others, and which channels are present.

    Args:
        names: the sequence of each of `images`.
        kept: the sequences that count; those that are not on the axis are left out.
    """
    placed = np.zeros((len(axis), *images.shape[1:]), dtype=images.dtype)
    present = np.zeros(len(axis), dtype=bool)
    for at, name in enumerate(names):
        if name in kept and name in axis:
            (channel,) = axis.channels([name])
            placed[channel] = images[at]
            present[channel] = True
    return placed, present
