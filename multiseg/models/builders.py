"""Networks by name, their numbers written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from multiseg.errors import UsageError
from multiseg.models.fusion import LFUNet, MAFUnet
from multiseg.models.hetero import HemisUnet
from multiseg.models.plus import MultiUnetPlus
from multiseg.models.progressive import ProgressiveUnet
from multiseg.models.unet import MultiUnet

PUBLISHED_WIDTHS = (16, 32, 64, 128, 256)
PLUS_WIDTHS = (32, 64, 128, 256, 320)


def multi_unet(
    num_modalities: int,
    num_logits: int,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    dropout: float = 0.2,
    norm: str = "instance",
) -> MultiUnet:
    """The published Multi-Unet: 8,900,930 parameters for 6 sequences and one logit."""
    return MultiUnet(num_modalities, num_logits, tuple(widths), dropout, norm)


def lf_unet(
    num_modalities: int,
    num_logits: int,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    dropout: float = 0.2,
    norm: str = "instance",
) -> LFUNet:
    """One U-Net for all sequences, fused by attention before the last convolution."""
    return LFUNet(num_modalities, num_logits, tuple(widths), dropout, norm)


def maf_unet(
    num_modalities: int,
    num_logits: int,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    dropout: float = 0.2,
    norm: str = "instance",
) -> MAFUnet:
    """An encoder for every sequence, fused by attention at every scale."""
    return MAFUnet(num_modalities, num_logits, tuple(widths), dropout, norm)


def hemis(
    num_modalities: int,
    num_logits: int,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    dropout: float = 0.2,
    norm: str = "instance",
) -> HemisUnet:
    """An encoder for every sequence, fused by mean and variance at every scale."""
    return HemisUnet(num_modalities, num_logits, tuple(widths), dropout, norm)


def multi_unet_plus(
    num_modalities: int,
    num_logits: int,
    widths: Sequence[int] = PLUS_WIDTHS,
    dropout: float = 0.0,
    norm: str = "instance_affine",
) -> MultiUnetPlus:
    """The larger Multi-Unet, with features at full resolution and deep supervision."""
    return MultiUnetPlus(num_modalities, num_logits, tuple(widths), dropout, norm)


def progressive(
    num_modalities: int,
    num_logits: int,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    dropout: float = 0.2,
    norm: str = "instance",
    first_modalities: int | None = None,
) -> ProgressiveUnet:
    """A Multi-Unet that reads the features of a frozen one, its `first`, which is to be given trained weights."""
    return ProgressiveUnet(num_modalities, num_logits, tuple(widths), dropout, norm, first_modalities)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "multi_unet": multi_unet,
    "lf_unet": lf_unet,
    "maf_unet": maf_unet,
    "hemis": hemis,
    "multi_unet_plus": multi_unet_plus,
    "progressive": progressive,
}


def build(name: str, num_modalities: int, num_logits: int, **numbers: object) -> nn.Module:
    """The network of this name.

    Raises:
        UsageError: there is no such network, or it cannot be of these numbers.
    """
    if name not in BUILDERS:
        raise UsageError(f"there is no network {name!r}; there are {', '.join(BUILDERS)}.")
    return BUILDERS[name](num_modalities, num_logits, **numbers)
