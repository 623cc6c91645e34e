"""Networks that fuse the sequences' features: by attention (LFUNet and MAFUNet, compared in Xu et al. 2024) or by their
mean and variance (HeMIS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.models.presence import Pairs, shown
from multiseg.models.unet import (
    MultiUnet,
    check_numbers,
    check_size,
    decode,
    decoder_stages,
    encode,
    encoder_units,
    last_convolution,
)


class AttentionFusion(nn.Module):
    """Fuse the feature maps of the present sequences into one, with weights for each voxel.

    With z_m the features of sequence m (Xu et al. 2024, compared networks):
        a = softmax over m of conv(conv([z_1 .. z_C])),    z = sum_m a_m z_m
    The concatenation has a slot for each of the C sequences. The slot of an absent one is 0 and its score -inf, so
    that it gets no weight. The paper does not give kernel sizes, widths, the layer between, the number of maps and the
    treatment of absent sequences. Here the first convolution is 1x1x1 and as wide as z_m, a PReLU follows, the second
    is 3x3x3, and there is one attention map per sequence.
    """

    def __init__(self, num_modalities: int, width: int) -> None:
        super().__init__()
        # A convolution of the concatenation is the sum of one convolution per slot, so empty slots are not computed.
        self.slots = nn.ModuleList(nn.Conv3d(width, width, 1, bias=m == 0) for m in range(num_modalities))
        self.activation = nn.PReLU()
        self.score = nn.Conv3d(width, num_modalities, 3, padding=1)

    def forward(self, features: Mapping[int, Tensor], pairs: Pairs) -> Float[Tensor, "batch width i j k"]:
        """The fused features, from each sequence's [row width i j k] for the samples that have it."""
        mixed = pairs.summed({m: self.slots[m](z) for m, z in features.items()})
        scores = self.score(self.activation(mixed))
        absent = rearrange(~pairs.present, "b m -> b m 1 1 1")
        a = torch.softmax(scores.masked_fill(absent, -torch.inf), dim=1)
        return pairs.summed({m: a[pairs.rows[m], m : m + 1] * z for m, z in features.items()})


class LFUNet(nn.Module):
    """Late fusion: one U-Net, shared by all sequences, whose last features are fused by attention.

    The U-Net is the published one with a single input channel; the input of its last convolution is fused. It runs
    only on the sequences that are present, so the cost is proportional to their number.

    Raises:
        UsageError: see MultiUnet; any number of sequences fits.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.unet = MultiUnet(1, num_logits, widths, dropout, norm)
        self.fusion = AttentionFusion(num_modalities, self.unet.head.in_channels)
        self.multiple = self.unet.multiple

    @property
    def head(self) -> nn.Module:
        """The last convolution, from features to logits."""
        return self.unet.head

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; absent channels have no effect.

        Raises:
            UsageError: the size does not fit, see MultiUnet.
        """
        check_size(images, self.multiple)
        seen = shown(images, present)
        pairs = Pairs.of(present, images.device)
        channels = torch.cat([seen[rows, m : m + 1] for m, rows in pairs.rows.items()])
        split = torch.split(self.unet.features(channels), [len(rows) for rows in pairs.rows.values()])
        out: Tensor = self.head(self.fusion(dict(zip(pairs.rows, split, strict=True)), pairs))
        return out


class MAFUnet(nn.Module):
    """Multi-scale attention fusion: an encoder for every sequence, fused by attention at every scale, one decoder.

    The paper does not say whether the encoders share weights; here they do not. An encoder runs only on the samples
    that have its sequence.

    Raises:
        UsageError: see MultiUnet; any number of sequences fits.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance"
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout)
        self.encoders = nn.ModuleList(encoder_units(1, widths, dropout, norm) for _ in range(num_modalities))
        self.fusions = nn.ModuleList(AttentionFusion(num_modalities, width) for width in widths)
        self.decoder = decoder_stages(widths, num_logits, dropout, norm)
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
        return decode(self.decoder, [fuse(z, pairs) for fuse, z in zip(self.fusions, scales, strict=True)])


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


def encode_each(
    encoders: nn.ModuleList, images: Float[Tensor, "batch modality i j k"], pairs: Pairs
) -> list[dict[int, Tensor]]:
    """For every scale, finest first, each sequence's features [row width i j k] by its encoder."""
    by_sequence: dict[int, list[Tensor]] = {}
    for m, rows in pairs.rows.items():
        units = encoders[m]
        assert isinstance(units, nn.ModuleList)
        by_sequence[m] = encode(units, images[rows, m : m + 1])
    depth = len(next(iter(by_sequence.values())))
    return [{m: features[scale] for m, features in by_sequence.items()} for scale in range(depth)]


def moments(features: dict[int, Tensor], pairs: Pairs) -> Float[Tensor, "batch both i j k"]:
    """Mean and variance over the sequences of every sample, concatenated.

    mean = 1/n sum_m z_m,  variance = 1/n sum_m (z_m - mean)^2  over the n present sequences. The variance is that of
    the population, 0 for a single sequence (the unbiased one would be 0/0).
    """
    n = rearrange(reduce(pairs.present.to(next(iter(features.values())).dtype), "b m -> b", "sum"), "b -> b 1 1 1 1")
    mean = pairs.summed(features) / n
    variance = pairs.summed({m: (z - mean[pairs.rows[m]]) ** 2 for m, z in features.items()}) / n
    return torch.cat([mean, variance], dim=1)
