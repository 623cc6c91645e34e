"""Which samples have which sequences, for networks that compute only present sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

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

    def of_sequence(self, volume: Float[Tensor, "batch width i j k"], m: int) -> Float[Tensor, "row width i j k"]:
        """The samples of a volume that have a sequence."""
        return volume[self.rows[m]]

    def separated(self, joined: Float[Tensor, "rows width i j k"]) -> dict[int, Tensor]:
        """Each sequence's part [row width i j k] of what was computed for all of `channels`, concatenated."""
        parts = torch.split(joined, [len(rows) for rows in self.rows.values()])
        return dict(zip(self.rows, parts, strict=True))

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


@dataclass(frozen=True, eq=False)
class AllPairs:
    """What `Pairs` computes, from every sequence of every sample: sums leave out those that are not present.

    It costs more, but its control flow does not depend on the data, as an exported network needs.

    Attributes:
        present: as in `Pairs`.
    """

    present: Bool[Tensor, "batch modality"]

    @classmethod
    def of(cls, present: Bool[Tensor, "batch modality"], device: torch.device) -> AllPairs:
        has = present.to(device)
        is_first = torch.arange(has.shape[1], device=device) == 0
        return cls(has | (is_first & ~has.any(dim=1, keepdim=True)))

    def channels(self, images: Float[Tensor, "batch modality i j k"]) -> dict[int, Tensor]:
        return {m: images[:, m : m + 1] for m in range(self.present.shape[1])}

    def of_sequence(self, volume: Float[Tensor, "batch width i j k"], m: int) -> Float[Tensor, "batch width i j k"]:
        return volume

    def separated(self, joined: Float[Tensor, "rows width i j k"]) -> dict[int, Tensor]:
        parts = rearrange(joined, "(m b) w i j k -> m b w i j k", m=self.present.shape[1])
        return dict(enumerate(parts))

    def mean(self, parts: Mapping[int, Tensor]) -> Float[Tensor, "batch width i j k"]:
        total = self.summed(parts)
        return total / rearrange(reduce(self.present.to(total.dtype), "b m -> b", "sum"), "b -> b 1 1 1 1")

    def summed(self, parts: Mapping[int, Tensor]) -> Float[Tensor, "batch width i j k"]:
        seen = rearrange(self.present, "b m -> m b 1 1 1 1")
        shown_parts = [torch.where(seen[m], part, 0.0) for m, part in parts.items()]
        return torch.stack(shown_parts).sum(dim=0)


PairsOf: TypeAlias = Callable[[Tensor, torch.device], Pairs | AllPairs]
"""`Pairs.of`, or `AllPairs.of`."""
