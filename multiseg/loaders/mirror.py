"""Exchange left and right structures when a patch is mirrored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.sides import UNPAIRED, unpaired


def check_sides(space: LabelSpace) -> None:
    """Raises UsageError if a structure of one side has no label for the other side."""
    if alone := unpaired(space):
        raise UsageError(
            "patches may be mirrored (augment.flip_probability), which turns left structures into right ones, but the "
            f"labels do not have the other side of {', '.join(alone)}. Add it to the labels, or train without flips: "
            "--augment none, or flip_probability = 0 in [augment]."
        )


def exchanged(
    target: UInt8[Tensor, "i j k"], annotated: Bool[Tensor, " label"], mirrored: Sequence[int]
) -> tuple[UInt8[Tensor, "i j k"], Bool[Tensor, " label"]]:
    """The target and the annotated labels of a mirrored patch, in which left and right are exchanged.

    Args:
        mirrored: what each index becomes, see `multiseg.sides.mirrored`; if empty, nothing changes.

    Raises:
        UsageError: a structure has no counterpart.
    """
    if list(mirrored) == list(range(len(mirrored))):
        return target, annotated
    if UNPAIRED in mirrored:
        raise UsageError(
            f"structure {list(mirrored).index(UNPAIRED)} of the label space has a side, but the other side has no "
            "label, so a patch cannot be mirrored. Add that label, or leave out flips."
        )
    table = torch.arange(256, dtype=torch.uint8, device=target.device)
    table[: len(mirrored)] = torch.tensor(mirrored, dtype=torch.uint8, device=target.device)
    # Pairs are exchanged, so the source of a label is also its destination.
    sources = torch.tensor(mirrored[1:], device=annotated.device) - 1
    return table[target.long()], annotated[sources]
