"""Building blocks of the residual U-Net of Xu et al. 2024."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ConvUnit(nn.Module):
    """3x3x3 convolution, instance norm without parameters, dropout, PReLU with one shared slope."""

    def __init__(self, in_width: int, out_width: int, stride: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_width, out_width, kernel_size=3, stride=stride, padding=1)
        self.norm = nn.InstanceNorm3d(out_width)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.PReLU()

    def forward(self, x: Float[Tensor, "batch in_width i j k"]) -> Float[Tensor, "batch out_width oi oj ok"]:
        out: Tensor = self.activation(self.dropout(self.norm(self.conv(x))))
        return out


class ResidualUnit(nn.Module):
    """Two convolution units and a shortcut into the first `in_width` output channels only.

    The shortcut is the input, average-pooled (3^3, the zero padding counted in) where the unit strides;
    the other output channels get none, and nothing follows the sum. This is how the published network
    does it, unlike the usual residual unit with its projection.
    """

    def __init__(self, in_width: int, out_width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.first = ConvUnit(in_width, out_width, stride, dropout)
        self.second = ConvUnit(out_width, out_width, 1, dropout)
        self.pool = nn.AvgPool3d(3, stride, padding=1) if stride > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "batch in_width i j k"]) -> Float[Tensor, "batch out_width oi oj ok"]:
        out = self.second(self.first(x))
        shortcut = self.pool(x)
        n = shortcut.shape[1]
        return torch.cat([out[:, :n] + shortcut, out[:, n:]], dim=1)


class UpStage(nn.Module):
    """Concatenate deep and skip features of one resolution, upsample x2 (nearest), convolve twice.

    The last stage ends in a bare convolution that gives the logits.
    """

    def __init__(self, in_width: int, out_width: int, dropout: float, is_last: bool) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.keep = ConvUnit(in_width, in_width, 1, dropout)
        last = nn.Conv3d(in_width, out_width, kernel_size=3, padding=1)
        self.reduce = last if is_last else ConvUnit(in_width, out_width, 1, dropout)

    def forward(
        self, deep: Float[Tensor, "batch deep i j k"], skip: Float[Tensor, "batch skip i j k"]
    ) -> Float[Tensor, "batch out_width oi oj ok"]:
        out: Tensor = self.reduce(self.keep(self.upsample(torch.cat([deep, skip], dim=1))))
        return out
