"""Which samples have which sequences, for networks that compute only present sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor


def shown(
    images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
) -> Float[Tensor, "batch modality i j k"]:
    """The images with 0 in every channel that is not present."""
    seen = rearrange(present.to(images.device), "b m -> b m 1 1 1")
    return torch.where(seen, images, torch.zeros_like(images))


@dataclass(frozen=True, eq=False)
class Pairs:
    """The (sample, sequence) pairs of a batch, by sequence.

    Attributes:
        present: as given, but a sample without any sequence counts as having the first.
        rows: by channel, the samples that have it [row]; a channel without samples is left out.
    """

    present: Bool[Tensor, "batch modality"]
    rows: Mapping[int, Tensor]

    @classmethod
    def of(cls, present: Bool[Tensor, "batch modality"], device: torch.device) -> Pairs:
        """The pairs of a batch. Does not wait for the device if `present` is on the CPU."""
        has = present.cpu().clone()
        has[:, 0] |= ~has.any(dim=1)  # a softmax or a mean needs at least one sequence
        rows = {m: has[:, m].nonzero()[:, 0].to(device) for m in range(has.shape[1]) if has[:, m].any()}
        return cls(has.to(device), rows)

    def channels(self, images: Float[Tensor, "batch modality i j k"]) -> dict[int, Tensor]:
        """Each sequence's images [row 1 i j k], of the samples that have it."""
        return {m: images[rows, m : m + 1] for m, rows in self.rows.items()}

    def mean(self, parts: Mapping[int, Tensor]) -> Float[Tensor, "batch width i j k"]:
        """The mean over every sample's sequences, from each sequence's part [row width i j k]."""
        total = self.summed(parts)
        return total / rearrange(reduce(self.present.to(total.dtype), "b m -> b", "sum"), "b -> b 1 1 1 1")

    def summed(self, parts: Mapping[int, Tensor]) -> Float[Tensor, "batch width i j k"]:
        """The sum over every sample's sequences, from each sequence's part [row width i j k]."""
        like = next(iter(parts.values()))
        total = like.new_zeros(len(self.present), *like.shape[1:])
        for channel, rows in self.rows.items():
            total.index_add_(0, rows, parts[channel])
        return total
