"""Networks that fuse the sequences' features: by attention (LFUNet and MAFUNet, compared in Xu et al. 2024) or by their
mean and variance (HeMIS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.models.presence import AllPairs, Pairs, PairsOf, shown
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

    def forward(self, features: Mapping[int, Tensor], pairs: Pairs | AllPairs) -> Float[Tensor, "batch width i j k"]:
        """The fused features, from each sequence's [row width i j k] for the samples that have it."""
        mixed = pairs.summed({m: self.slots[m](z) for m, z in features.items()})
        scores = self.score(self.activation(mixed))
        absent = rearrange(~pairs.present, "b m -> b m 1 1 1")
        a = torch.softmax(scores.masked_fill(absent, -torch.inf), dim=1)
        return pairs.summed({m: pairs.of_sequence(a[:, m : m + 1], m) * z for m, z in features.items()})


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
        self.pairs_of: PairsOf = Pairs.of

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
        pairs = self.pairs_of(present, images.device)
        channels = torch.cat(list(pairs.channels(seen).values()))
        out: Tensor = self.head(self.fusion(pairs.separated(self.unet.features(channels)), pairs))
        return out


class Moments(nn.Module):
    """Fuse the feature maps of the present sequences into their mean and variance, see `moments`."""

    def forward(self, features: Mapping[int, Tensor], pairs: Pairs | AllPairs) -> Float[Tensor, "batch both i j k"]:
        """The fused features, from each sequence's [row width i j k] for the samples that have it."""
        return moments(features, pairs)


class FusedEncoders(nn.Module):
    """What MAFUNet and HeMIS are made of: an encoder for every sequence, a fusion at every scale, one decoder.

    An encoder runs only on the samples that have its sequence.

    Args:
        fusion: makes the fusion of a scale from its width; it is called as (features by sequence, pairs).
        fold: how many times as wide as the encoder the fused features are.
    """

    def __init__(
        self,
        num_modalities: int,
        num_logits: int,
        widths: Sequence[int],
        dropout: float,
        norm: str,
        fusion: Callable[[int], nn.Module],
        fold: int = 1,
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout)
        self.encoders = nn.ModuleList(encoder_units(1, widths, dropout, norm) for _ in range(num_modalities))
        self.fusions = nn.ModuleList(fusion(width) for width in widths)
        self.decoder = decoder_stages(widths, num_logits, dropout, norm, fold)
        self.multiple = 2 ** (len(widths) - 1)
        self.pairs_of: PairsOf = Pairs.of

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
        pairs = self.pairs_of(present, images.device)
        scales = encode_each(self.encoders, shown(images, present), pairs)
        return decode(self.decoder, [fuse(z, pairs) for fuse, z in zip(self.fusions, scales, strict=True)])


class MAFUnet(FusedEncoders):
    """Multi-scale attention fusion: an encoder for every sequence, fused by attention at every scale, one decoder.

    The paper does not say whether the encoders share weights; here they do not.

    Raises:
        UsageError: see MultiUnet; any number of sequences fits.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance"
    ) -> None:
        fusion = partial(AttentionFusion, num_modalities)
        super().__init__(num_modalities, num_logits, widths, dropout, norm, fusion)


class HemisUnet(FusedEncoders):
    """A U-Net by Havaei et al. 2016 (arXiv:1607.05194): any set of sequences, fused by two moments.

    Every sequence has its own encoder. At every scale the mean and the variance over the present sequences are
    concatenated and go to one decoder, whose skips are therefore twice as wide as Multi-Unet's.

    Raises:
        UsageError: see MultiUnet; any number of sequences fits.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance"
    ) -> None:
        super().__init__(num_modalities, num_logits, widths, dropout, norm, lambda width: Moments(), fold=2)


def encode_each(
    encoders: nn.ModuleList, images: Float[Tensor, "batch modality i j k"], pairs: Pairs | AllPairs
) -> list[dict[int, Tensor]]:
    """For every scale, finest first, each sequence's features [row width i j k] by its encoder."""
    by_sequence: dict[int, list[Tensor]] = {}
    for m, channel in pairs.channels(images).items():
        units = encoders[m]
        assert isinstance(units, nn.ModuleList)
        by_sequence[m] = encode(units, channel)
    depth = len(next(iter(by_sequence.values())))
    return [{m: features[scale] for m, features in by_sequence.items()} for scale in range(depth)]


def moments(features: Mapping[int, Tensor], pairs: Pairs | AllPairs) -> Float[Tensor, "batch both i j k"]:
    """Mean and variance over the sequences of every sample, concatenated.

    mean = 1/n sum_m z_m,  variance = 1/n sum_m (z_m - mean)^2  over the n present sequences. The variance is that of
    the population, 0 for a single sequence (the unbiased one would be 0/0).
    """
    mean = pairs.mean(features)
    variance = pairs.mean({m: (z - pairs.of_sequence(mean, m)) ** 2 for m, z in features.items()})
    return torch.cat([mean, variance], dim=1)
