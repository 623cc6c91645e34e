"""The network of Dorent et al. 2019: HighRes3DNet (Li et al. 2017) behind a first layer for every sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.models.blocks import he_initialised, norm_layer
from multiseg.models.stems import AveragedStems
from multiseg.models.unet import check_numbers, check_size

REPEATS = 3
"""Residual units of each width."""


class DilatedUnit(nn.Module):
    """Twice a norm, a ReLU and a dilated 3x3x3 convolution, added to the input (Li et al. 2017, arXiv:1707.01992).

    Where the width grows, the input gets channels of 0: half of them before its own, half after.
    """

    def __init__(self, in_width: int, out_width: int, dilation: int, dropout: float, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_width, out_width):
            convolution = nn.Conv3d(width, out_width, 3, padding=dilation, dilation=dilation, bias=False)
            layers += [norm_layer(norm, width), nn.ReLU(), convolution]
        self.convolutions = nn.Sequential(*layers, nn.Dropout(dropout))
        more = out_width - in_width
        self.padding = (0, 0, 0, 0, 0, 0, more // 2, more - more // 2)

    def forward(self, x: Float[Tensor, "batch in_width i j k"]) -> Float[Tensor, "batch out_width i j k"]:
        out: Tensor = self.convolutions(x) + F.pad(x, self.padding)
        return out


class HighRes3DHetero(nn.Module):
    """HighRes3DNet whose first layer every sequence has for itself, averaged (Dorent et al. 2019, section 2.3).

    All features have the resolution of the images. After the first layer (3^3, norm, ReLU) come three residual units
    of each width but the last, with dilation 1, 2, 4 ..., a 1^3 layer of the last width, and the 1^3 convolution that
    gives the logits. The text leaves open where the features are averaged; here it is after the first layer.

    Args:
        widths: channels of the residual units, and of the 1^3 layer; (16, 32, 64, 80) is the published network.

    Raises:
        UsageError: there are fewer than two widths, they do not ascend, or dropout or norm is invalid.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance_affine"
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout)
        *stages, last = widths
        self.stems = AveragedStems(num_modalities, lambda: _layer(1, stages[0], 3, norm))
        units: list[nn.Module] = []
        for stage, (i, o) in enumerate(zip([stages[0], *stages[:-1]], stages, strict=True)):
            units += [DilatedUnit(o if n else i, o, 2**stage, dropout, norm) for n in range(REPEATS)]
        self.units = nn.Sequential(*units)
        self.last = _layer(stages[-1], last, 1, norm)
        self.head = nn.Conv3d(last, num_logits, kernel_size=1)
        self.multiple = 2 ** (len(widths) - 1)
        he_initialised(self, slope=0.0)

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; absent channels have no effect.

        Raises:
            UsageError: a size is not a multiple of 2^(number of widths - 1) voxels, as the released network requires.
        """
        check_size(images, self.multiple)
        logits: Tensor = self.head(self.last(self.units(self.stems(images, present))))
        return logits


def _layer(in_width: int, out_width: int, kernel: int, norm: str) -> nn.Sequential:
    convolution = nn.Conv3d(in_width, out_width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, norm_layer(norm, out_width), nn.ReLU())
