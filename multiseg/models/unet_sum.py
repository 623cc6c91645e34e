"""The U-Net of Roulet et al. 2019: plain blocks, and skips that are added instead of concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.models.blocks import double_convolution
from multiseg.models.presence import shown
from multiseg.models.unet import check_numbers, check_size


class UnetSum(nn.Module):
    """3-D U-Net with summed skips (Roulet et al. 2019, section 2.3), with an input channel for every sequence.

    A block is twice a convolution (3^3), a norm and a ReLU. Max-pooling halves the resolution, and transposed
    convolutions (2^3) double it; then the features of the encoder at that resolution are added. The last convolution
    (1^3) gives the logits. The published text does not say whether the deepest of the four blocks is the bottom
    (widths 32, 64, 128, 256: 5.02 million parameters, the default here) or is followed by one (20.2 million).

    Args:
        widths: channels of the blocks, from the finest resolution to the coarsest.

    Raises:
        UsageError: there are fewer than two widths, they do not ascend, or dropout or norm is invalid.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "batch"
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout)
        block = partial(double_convolution, dropout=dropout, norm=norm, activation=nn.ReLU)
        pairs = list(zip([num_modalities, *widths[:-1]], widths, strict=True))
        self.encoder = nn.ModuleList(block(i, o, o) for i, o in pairs)
        self.pool = nn.MaxPool3d(2)
        self.up = nn.ModuleList(nn.ConvTranspose3d(o, i, kernel_size=2, stride=2) for i, o in reversed(pairs[1:]))
        self.decoder = nn.ModuleList(block(i, i, i) for i, _ in reversed(pairs[1:]))
        self.head = nn.Conv3d(widths[0], num_logits, kernel_size=1)
        self.multiple = 2 ** (len(widths) - 1)

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; channels that are not present count as 0.

        Raises:
            UsageError: a size is not a multiple of 2^(depth - 1) voxels.
        """
        check_size(images, self.multiple)
        x = shown(images, present)
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(self.pool(x) if skips else x)
            skips.append(x)
        for up, block, skip in zip(self.up, self.decoder, reversed(skips[:-1]), strict=True):
            x = block(up(x) + skip)
        logits: Tensor = self.head(x)
        return logits
