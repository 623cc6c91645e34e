"""Which samples have which sequences, for networks that compute only what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def shown(
    images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
) -> Float[Tensor, "batch modality i j k"]:
    """The images with 0 in every channel that is not present, whatever it holds."""
    seen = rearrange(present.to(images.device), "b m -> b m 1 1 1")
    return torch.where(seen, images, torch.zeros_like(images))


@dataclass(frozen=True, eq=False)
class Pairs:
    """The (sample, sequence) pairs that there are, sequence by sequence.

    Attributes:
        present: as given, but a sample without any sequence counts as having the first.
        rows: by channel, the samples that have it [row]; a channel that nobody has is left out.
    """

    present: Bool[Tensor, "batch modality"]
    rows: Mapping[int, Tensor]

    @classmethod
    def of(cls, present: Bool[Tensor, "batch modality"], device: torch.device) -> Pairs:
        """The pairs of a batch. Free of a wait for the device where `present` lies on the CPU."""
        at_hand = present.cpu().clone()
        at_hand[:, 0] |= ~at_hand.any(dim=1)  # else nothing to compute: a softmax over nothing, a mean of nothing
        rows = {m: at_hand[:, m].nonzero()[:, 0].to(device) for m in range(at_hand.shape[1]) if at_hand[:, m].any()}
        return cls(at_hand.to(device), rows)

    def summed(self, parts: Mapping[int, Tensor]) -> Float[Tensor, "batch width i j k"]:
        """The sum over every sample's sequences, from each sequence's part [row width i j k]."""
        like = next(iter(parts.values()))
        total = like.new_zeros(len(self.present), *like.shape[1:])
        for channel, rows in self.rows.items():
            total.index_add_(0, rows, parts[channel])
        return total
