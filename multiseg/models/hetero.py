"""HeMIS: fusion by the mean and variance of the sequences' features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.models.fusion import encode_each
from multiseg.models.presence import Pairs, shown
from multiseg.models.unet import (
    check_numbers,
    check_size,
    decode,
    decoder_stages,
    encoder_units,
    last_convolution,
)


class HemisUnet(nn.Module):
    """A U-Net by Havaei et al. 2016 (arXiv:1607.05194): any set of sequences, fused by two moments.

    Every sequence has its own encoder, which runs only on the samples that have it. At every scale the mean and the
    variance over the present sequences are concatenated and go to one decoder, whose skips are therefore twice as wide
    as Multi-Unet's.

    Raises:
        UsageError: see MultiUnet; any number of sequences fits.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance"
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout)
        self.encoders = nn.ModuleList(encoder_units(1, widths, dropout, norm) for _ in range(num_modalities))
        self.decoder = decoder_stages(widths, num_logits, dropout, norm, fold=2)
        self.multiple = 2 ** (len(widths) - 1)

    @property
    def head(self) -> nn.Module:
        """The last convolution, from features to logits."""
        return last_convolution(self.decoder)

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; absent channels have no effect.

        Raises:
            UsageError: the size does not fit, see MultiUnet.
        """
        check_size(images, self.multiple)
        pairs = Pairs.of(present, images.device)
        scales = encode_each(self.encoders, shown(images, present), pairs)
        return decode(self.decoder, [moments(z, pairs) for z in scales])


def moments(features: dict[int, Tensor], pairs: Pairs) -> Float[Tensor, "batch both i j k"]:
    """Mean and variance over the sequences of every sample, concatenated.

    mean = 1/n sum_m z_m,  variance = 1/n sum_m (z_m - mean)^2  over the n present sequences. The variance is that of
    the population, 0 for a single sequence (the unbiased one would be 0/0).
    """
    n = rearrange(reduce(pairs.present.to(next(iter(features.values())).dtype), "b m -> b", "sum"), "b -> b 1 1 1 1")
    mean = pairs.summed(features) / n
    variance = pairs.summed({m: (z - mean[pairs.rows[m]]) ** 2 for m, z in features.items()}) / n
    return torch.cat([mean, variance], dim=1)
