"""Building blocks of the residual U-Net of Xu et al. 2024."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multiseg.errors import UsageError

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm3d,
    "instance_affine": lambda width: nn.InstanceNorm3d(width, affine=True),
    "group": lambda width: nn.GroupNorm(math.gcd(16, width), width),
    "batch": nn.BatchNorm3d,
}
"""Normalisations by name. "instance" has no parameters, as published; "group" has 16 groups, or the most that divide
both 16 and the width."""


def norm_layer(name: str, width: int) -> nn.Module:
    """The normalisation of this name; raises UsageError if there is none."""
    if name not in NORMS:
        raise UsageError(f"there is no norm {name!r}: give one of {', '.join(NORMS)}.")
    return NORMS[name](width)


def double_convolution(
    in_width: int, mid_width: int, out_width: int, dropout: float, norm: str, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """The block of plain U-Nets: twice a 3x3x3 convolution, a norm and an activation; then dropout."""
    layers: list[nn.Module] = []
    for i, o in ((in_width, mid_width), (mid_width, out_width)):
        layers += [nn.Conv3d(i, o, kernel_size=3, padding=1), norm_layer(norm, o), activation()]
    return nn.Sequential(*layers, nn.Dropout(dropout))


def he_initialised(network: nn.Module, slope: float) -> None:
    """Draw the weights of all convolutions for (leaky) ReLUs of this slope, with biases of 0 (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ConvUnit(nn.Module):
    """3x3x3 convolution, norm, dropout, PReLU with one shared slope."""

    def __init__(
        self, in_width: int, out_width: int, stride: int = 1, dropout: float = 0.2, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_width, out_width, kernel_size=3, stride=stride, padding=1)
        self.norm = norm_layer(norm, out_width)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.PReLU()

    def forward(self, x: Float[Tensor, "batch in_width i j k"]) -> Float[Tensor, "batch out_width oi oj ok"]:
        out: Tensor = self.activation(self.dropout(self.norm(self.conv(x))))
        return out


class ResidualUnit(nn.Module):
    """Two convolution units and a shortcut into the first `in_width` output channels only.

    The shortcut is the input, average-pooled if the unit strides (3^3, including the zero padding); the other output
    channels have no shortcut, and nothing follows the sum. This is as in the published network, unlike the usual
    residual unit with a projection.

    Args:
        lateral: channels of another network's features that the first convolution also reads; the shortcut leaves
            them out.
    """

    def __init__(
        self, in_width: int, out_width: int, stride: int, dropout: float, norm: str = "instance", lateral: int = 0
    ) -> None:
        super().__init__()
        self.first = ConvUnit(in_width + lateral, out_width, stride, dropout, norm)
        self.second = ConvUnit(out_width, out_width, 1, dropout, norm)
        self.pool = nn.AvgPool3d(3, stride, padding=1) if stride > 1 else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch in_width i j k"], lateral: Float[Tensor, "batch lateral i j k"] | None = None
    ) -> Float[Tensor, "batch out_width oi oj ok"]:
        out = self.second(self.first(x if lateral is None else torch.cat([x, lateral], dim=1)))
        shortcut = self.pool(x)
        n = shortcut.shape[1]
        return torch.cat([out[:, :n] + shortcut, out[:, n:]], dim=1)


class UpStage(nn.Module):
    """Concatenate deep and skip features of one resolution, upsample x2 (nearest), convolve twice.

    The last stage ends in a bare convolution that gives the logits.

    Args:
        in_width: channels of deep and skip together.
        lateral: channels of another network's features that are concatenated to them.
    """

    def __init__(
        self, in_width: int, out_width: int, dropout: float, is_last: bool, norm: str = "instance", lateral: int = 0
    ) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.keep = ConvUnit(in_width + lateral, in_width, 1, dropout, norm)
        last = nn.Conv3d(in_width, out_width, kernel_size=3, padding=1)
        self.reduce = last if is_last else ConvUnit(in_width, out_width, 1, dropout, norm)

    def kept(self, *features: Float[Tensor, "batch _ i j k"]) -> Float[Tensor, "batch in_width oi oj ok"]:
        """The input of the second convolution: concatenated, upsampled, convolved once."""
        out: Tensor = self.keep(self.upsample(torch.cat(features, dim=1)))
        return out

    def forward(self, *features: Float[Tensor, "batch _ i j k"]) -> Float[Tensor, "batch out_width oi oj ok"]:
        """From deep, skip and, if the stage was built with them, lateral features."""
        out: Tensor = self.reduce(self.kept(*features))
        return out
