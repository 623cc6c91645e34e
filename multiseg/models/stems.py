"""A first block for every sequence, whose features are averaged: it makes a network take any set of sequences."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.models.presence import Pairs, PairsOf, shown


class AveragedStems(nn.Module):
    """A block for every sequence; the mean of their features over the sequences that a sample has.

    With z_m the features of sequence m and P the present ones (Dorent et al. 2019, section 2.3): z = 1/|P| sum_P z_m.
    A block runs only on the samples that have its sequence.

    Args:
        block: makes the block of a sequence, from one channel to as many as the network reads.
    """

    def __init__(self, num_modalities: int, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(num_modalities))
        self.pairs_of: PairsOf = Pairs.of

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch width i j k"]:
        """The averaged features; absent channels have no effect."""
        pairs = self.pairs_of(present, images.device)
        channels = pairs.channels(shown(images, present))
        return pairs.mean({m: self.blocks[m](channel) for m, channel in channels.items()})
