"""The U-Net of jSTABL (Dorent et al. 2021) behind a first block for every sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.models.blocks import double_convolution, he_initialised
from multiseg.models.stems import AveragedStems
from multiseg.models.unet import check_numbers, check_size

SLOPE = 0.01


class UnetHetero(nn.Module):
    """3-D U-Net whose first block every sequence has for itself, averaged (jSTABL, Dorent et al. 2021, as released).

    A block is twice a convolution (3^3), a norm and a LeakyReLU. Max-pooling halves the resolution; trilinear
    upsampling doubles it, and the features of the encoder are concatenated. The released network has a first block for
    T1 and one for all sequences together, so it reads either of these two sets; here every sequence has one, so any set
    fits. Unlike there, the last convolution (1^3) has a bias, as in all networks here.

    Args:
        widths: channels from the finest resolution to the coarsest, whose block ends with the width before.

    Raises:
        UsageError: there are fewer than two widths, they do not ascend, or dropout or norm is invalid.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance_affine"
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout)
        block = partial(double_convolution, dropout=dropout, norm=norm, activation=lambda: nn.LeakyReLU(SLOPE))
        *skips, bottom = widths
        self.stems = AveragedStems(num_modalities, lambda: block(1, skips[0], skips[0]))
        self.encoder = nn.ModuleList(block(i, o, o) for i, o in pairwise(skips))
        self.encoder.append(block(skips[-1], bottom, skips[-1]))
        finer = [skips[0], *skips[:-1]]
        self.decoder = nn.ModuleList(block(2 * w, w, o) for w, o in zip(reversed(skips), reversed(finer), strict=True))
        self.pool = nn.MaxPool3d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="trilinear")
        self.head = nn.Conv3d(skips[0], num_logits, kernel_size=1)
        self.multiple = 2 ** (len(widths) - 1)
        he_initialised(self, SLOPE)

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; absent channels have no effect.

        Raises:
            UsageError: a size is not a multiple of 2^(depth - 1) voxels.
        """
        check_size(images, self.multiple)
        features = [self.stems(images, present)]
        for block in self.encoder:
            features.append(block(self.pool(features[-1])))
        *skips, x = features
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(torch.cat([self.upsample(x), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits
