"""The joint Multi-Unet of Xu et al. 2024: one residual U-Net whose input has a channel for every sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.models.blocks import ResidualUnit, UpStage


class MultiUnet(nn.Module):
    """Residual 3-D U-Net over the union of sequences (Xu et al. 2024, section 2.1; details from the release).

    Encoder units double the width and halve the resolution, the last keeps it. The decoder concatenates
    before it upsamples, and there is no skip at full resolution, so the finest features are at half of it.

    Args:
        widths: channels of the encoder units; (16, 32, 64, 128, 256) is the published network.

    Raises:
        UsageError: fewer than two widths, or more sequences than the first width (the shortcut of the
            first unit adds each sequence to a channel of its own).
    """

    def __init__(self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        if len(widths) < 2 or list(widths) != sorted(widths) or num_modalities > widths[0]:
            raise UsageError(
                f"widths {list(widths)} do not fit {num_modalities} sequences: give two or more that do not fall, "
                "the first at least the number of sequences."
            )
        depth = len(widths)
        ins = [num_modalities, *widths[:-1]]
        strides = [2] * (depth - 1) + [1]
        self.encoder = nn.ModuleList(
            ResidualUnit(i, o, s, dropout) for i, o, s in zip(ins, widths, strides, strict=True)
        )
        skips = list(widths[-2::-1])
        outs = [*skips[1:], num_logits]
        deeps = [widths[-1], *outs[:-1]]
        self.decoder = nn.ModuleList(
            UpStage(d + s, o, dropout, is_last=at == depth - 2)
            for at, (d, s, o) in enumerate(zip(deeps, skips, outs, strict=True))
        )
        self.multiple = 2 ** (depth - 1)

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; channels that are not present count as 0 whatever they hold.

        Raises:
            UsageError: a size is no multiple of 2^(depth - 1) voxels, or so small that a shortcut's pool is
                larger than its input.
        """
        size = tuple(images.shape[2:])
        if any(n % self.multiple or n == self.multiple for n in size):
            raise UsageError(
                f"patches of {size} voxels do not fit the network: "
                f"give multiples of {self.multiple}, from {2 * self.multiple} on."
            )
        x = torch.where(rearrange(present, "b m -> b m 1 1 1"), images, torch.zeros_like(images))
        features = []
        for unit in self.encoder:
            x = unit(x)
            features.append(x)
        for stage, skip in zip(self.decoder, reversed(features[:-1]), strict=True):
            x = stage(x, skip)
        return x
