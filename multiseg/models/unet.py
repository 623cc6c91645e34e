"""The joint Multi-Unet of Xu et al. 2024: one residual U-Net with an input channel for every sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.models.blocks import ResidualUnit, UpStage
from multiseg.models.presence import shown


class MultiUnet(nn.Module):
    """Residual 3-D U-Net over the union of sequences (Xu et al. 2024, section 2.1; details from the release).

    Encoder units double the width and halve the resolution; the last keeps it. The decoder concatenates before it
    upsamples, and there is no skip at full resolution, so the finest features have half of it. Trained on one
    database, this is the single-database U-Net of the paper's comparison.

    Args:
        widths: channels of the encoder units; (16, 32, 64, 128, 256) is the published network.
        norm: see `multiseg.models.blocks.NORMS`.

    Raises:
        UsageError: there are fewer than two widths, or more sequences than the first width (the shortcut of the first
            unit adds each sequence to a different channel); or dropout or norm is invalid.
    """

    def __init__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int], dropout: float, norm: str = "instance"
    ) -> None:
        super().__init__()
        check_numbers(widths, dropout, num_modalities)
        self.encoder = encoder_units(num_modalities, widths, dropout, norm)
        self.decoder = decoder_stages(widths, num_logits, dropout, norm)
        self.multiple = 2 ** (len(widths) - 1)

    @property
    def head(self) -> nn.Conv3d:
        """The last convolution, from features to logits."""
        return last_convolution(self.decoder)

    @property
    def last_block(self) -> nn.Module:
        """The block before the last convolution."""
        last = self.decoder[-1]
        assert isinstance(last, UpStage)
        return last.keep

    def features(self, x: Float[Tensor, "batch modality i j k"]) -> Float[Tensor, "batch width i j k"]:
        """The input of the last convolution, on the grid of the images."""
        features = encode(self.encoder, x)
        deep = decoded(self.decoder, features)[-1]
        last = self.decoder[-1]
        assert isinstance(last, UpStage)
        return last.kept(deep, features[0])

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; channels that are not present count as 0.

        Raises:
            UsageError: a size is not a multiple of 2^(depth - 1) voxels, or so small that a shortcut's pool is
                larger than its input.
        """
        check_size(images, self.multiple)
        out: Tensor = self.head(self.features(shown(images, present)))
        return out


def check_numbers(widths: Sequence[int], dropout: float, num_modalities: int = 1) -> None:
    """Raises UsageError if the numbers of a network are invalid."""
    if len(widths) < 2 or list(widths) != sorted(widths) or num_modalities > widths[0]:
        raise UsageError(
            f"widths {list(widths)} do not fit {num_modalities} sequences: give two or more in ascending order, the "
            "first at least the number of sequences."
        )
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout is {dropout}: give a number from 0 to below 1.")


def check_size(images: Float[Tensor, "batch modality i j k"], multiple: int) -> None:
    """Raises UsageError if the patches cannot be halved as often as the network does it."""
    size = tuple(images.shape[2:])
    if any(n % multiple or n == multiple for n in size):
        raise UsageError(
            f"patches of {size} voxels do not fit the network: give multiples of {multiple}, at least {2 * multiple}."
        )


def encoder_units(
    in_width: int, widths: Sequence[int], dropout: float, norm: str, lateral: bool = False
) -> nn.ModuleList:
    """Residual units that halve the resolution, except the last.

    Args:
        lateral: whether the units that halve it, from the second on, also read as many channels of another network.
    """
    depth = len(widths)
    units = []
    for index, (i, o) in enumerate(zip([in_width, *widths[:-1]], widths, strict=True)):
        stride = 2 if index < depth - 1 else 1
        units.append(ResidualUnit(i, o, stride, dropout, norm, i if lateral and has_lateral(index, depth) else 0))
    return nn.ModuleList(units)


def has_lateral(index: int, depth: int) -> bool:
    """Whether an encoder unit of a second column reads the first column: it strides, and does not read the image."""
    return 0 < index < depth - 1


def decoder_stages(
    widths: Sequence[int], num_logits: int, dropout: float, norm: str, fold: int = 1, lateral: bool = False
) -> nn.ModuleList:
    """Stages that double the resolution; the last gives the logits.

    Args:
        fold: factor on the width of the features of every scale of the encoder.
        lateral: whether every stage also reads as many channels of another network.
    """
    skips = [fold * width for width in reversed(widths[:-1])]
    outs = [*reversed(widths[:-2]), num_logits]
    deeps = [fold * widths[-1], *outs[:-1]]
    return nn.ModuleList(
        UpStage(d + s, o, dropout, index == len(skips) - 1, norm, (d + s) if lateral else 0)
        for index, (d, s, o) in enumerate(zip(deeps, skips, outs, strict=True))
    )


def last_convolution(decoder: nn.ModuleList) -> nn.Conv3d:
    """The bare convolution that ends a decoder."""
    last = decoder[-1]
    assert isinstance(last, UpStage)
    assert isinstance(last.reduce, nn.Conv3d)
    return last.reduce


def encode(units: Iterable[nn.Module], x: Float[Tensor, "batch in_width i j k"]) -> list[Tensor]:
    """Features of every scale, finest first."""
    features = []
    for unit in units:
        x = unit(x)
        features.append(x)
    return features


def decoded(stages: Sequence[nn.Module] | nn.ModuleList, features: Sequence[Tensor]) -> list[Tensor]:
    """The deep features that each stage reads, from the encoder's features; the last stage is not run."""
    deeps = [features[-1]]
    for stage, skip in zip(list(stages)[:-1], features[-2:0:-1], strict=True):
        deeps.append(stage(deeps[-1], skip))
    return deeps


def decode(stages: nn.ModuleList, features: Sequence[Tensor]) -> Float[Tensor, "batch logit i j k"]:
    """Logits from the features of every scale, finest first."""
    logits: Tensor = stages[-1](decoded(stages, features)[-1], features[0])
    return logits
