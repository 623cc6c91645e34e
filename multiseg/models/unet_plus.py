"""A larger Multi-Unet with improvements of U-Nets since the published one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.models.blocks import norm_layer
from multiseg.models.presence import shown
from multiseg.models.unet import check_numbers, check_size, encode

MAX_SCALES = 3
SLOPE = 0.01


class ProjectedUnit(nn.Module):
    """Two 3x3x3 convolutions with norm and LeakyReLU, and a shortcut to every output channel (He et al. 2016).

    The shortcut is averaged (2^3) if the unit strides, and projected (1x1x1). It has no norm, so it passes on the level
    of intensities, which instance norm removes from the other branch.
    """

    def __init__(self, in_width: int, out_width: int, stride: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv3d(in_width, out_width, 3, stride, padding=1),
            norm_layer(norm, out_width),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
            nn.Conv3d(out_width, out_width, 3, padding=1),
            norm_layer(norm, out_width),
        )
        pool = nn.AvgPool3d(stride) if stride > 1 else nn.Identity()
        self.shortcut = nn.Sequential(pool, nn.Conv3d(in_width, out_width, 1))
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, x: Float[Tensor, "batch in_width i j k"]) -> Float[Tensor, "batch out_width oi oj ok"]:
        out: Tensor = self.activation(self.convolutions(x) + self.shortcut(x))
        return out


class UpUnit(nn.Module):
    """Upsample x2 by a transposed convolution (2^3), concatenate the skip of that resolution, one ProjectedUnit."""

    def __init__(self, in_width: int, skip_width: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose3d(in_width, skip_width, kernel_size=2, stride=2)
        self.unit = ProjectedUnit(2 * skip_width, skip_width, 1, dropout, norm)

    def forward(
        self, deep: Float[Tensor, "batch deep i j k"], skip: Float[Tensor, "batch skip si sj sk"]
    ) -> Float[Tensor, "batch skip si sj sk"]:
        out: Tensor = self.unit(torch.cat([self.upsample(deep), skip], dim=1))
        return out


class MultiUnetPlus(nn.Module):
    """Residual 3-D U-Net over the union of sequences, with features and a skip at full resolution.

    Differences to the published Multi-Unet: a unit and a skip at the images' resolution, projected shortcuts into all
    channels, transposed convolutions that upsample before the concatenation, norm with parameters, and logits at the
    finest scales for deep supervision. Any number of sequences fits any widths.

    Args:
        widths: channels at every resolution, finest first.

    Attributes:
        num_scales: number of scales with logits: three, or as many as the decoder has.

    Raises:
        UsageError: fewer than three widths, or not in ascending order; or an invalid dropout or norm.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance_affine"
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout)
        if len(widths) < 3:
            raise UsageError(f"widths {list(widths)} are too few for deep supervision: give three or more.")
        ins, strides = [num_modalities, *widths[:-1]], [1] + [2] * (len(widths) - 1)
        self.encoder = nn.ModuleList(
            ProjectedUnit(i, o, s, dropout, norm) for i, o, s in zip(ins, widths, strides, strict=True)
        )
        self.decoder = nn.ModuleList(
            UpUnit(deep, skip, dropout, norm) for deep, skip in pairwise(reversed(list(widths)))
        )
        self.num_scales = min(MAX_SCALES, len(self.decoder))
        self.heads = nn.ModuleList(nn.Conv3d(width, num_logits, 1) for width in widths[: self.num_scales])
        self.multiple = 2 ** (len(widths) - 1)

    @property
    def head(self) -> nn.Module:
        """The last convolution at full resolution, from features to logits."""
        return self.heads[0]

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"], deep: bool = False
    ) -> Float[Tensor, "batch label i j k"] | list[Tensor]:
        """Logits on the grid of the images; channels that are not present count as 0.

        Args:
            deep: return a list of logits instead, finest first, each half the size of the one before.

        Raises:
            UsageError: the size does not fit, see MultiUnet.
        """
        check_size(images, self.multiple)
        *skips, x = encode(self.encoder, shown(images, present))
        scales = []
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = stage(x, skip)
            scales.append(x)
        if deep:
            return [head(scale) for head, scale in zip(self.heads, reversed(scales), strict=False)]
        logits: Tensor = self.head(x)
        return logits
