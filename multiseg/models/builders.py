"""Networks by name, their numbers written out, and one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TypeAlias, get_type_hints

from torch import nn

from multiseg.errors import UsageError
from multiseg.models.fusion import LFUNet, MAFUnet
from multiseg.models.hetero import HemisUnet
from multiseg.models.plus import MultiUnetPlus
from multiseg.models.progressive import ProgressiveUnet
from multiseg.models.unet import MultiUnet
from multiseg.own import blamed, imported, is_own, name_of

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


Builder: TypeAlias = Callable[..., nn.Module]
"""From the numbers of sequences and of logits, and numbers by name, to a network."""


def build(builder: str | Builder, num_modalities: int, num_logits: int, **numbers: object) -> nn.Module:
    """The network of this name, or of this builder.

    Raises:
        UsageError: there is no such network, or it cannot be of these numbers.
    """
    if isinstance(builder, str) and not is_own(builder):
        if builder not in BUILDERS:
            raise UsageError(
                f"there is no network {builder!r}; there are {', '.join(BUILDERS)}, and your own as module:name."
            )
        return BUILDERS[builder](num_modalities, num_logits, **numbers)
    name = builder if isinstance(builder, str) else name_of(builder)
    make = own_builder(builder) if isinstance(builder, str) else builder
    with blamed("network", name):
        network = make(num_modalities, num_logits, **numbers)
    if not isinstance(network, nn.Module):
        raise UsageError(f"the network {name} made a {type(network).__name__}: it has to make a torch.nn.Module.")
    return network


def own_builder(name: str) -> Builder:
    """The network class, or the function that makes one, which `module:name` stands for.

    A model file names what is called when it is opened, so that nothing may be called that does not say it makes
    a network.

    Raises:
        UsageError: it cannot be imported, or is neither.
    """
    found = imported(name, "network")
    if not makes_network(found):
        raise UsageError(
            f"{name!r} is no network, and is not called: name a class derived from torch.nn.Module, or a function that "
            "says that it returns one (def net(num_modalities: int, num_logits: int) -> torch.nn.Module)."
        )
    made: Builder = found
    return made


def makes_network(thing: object) -> bool:
    """Whether something is a network's class, or a function annotated to return a network."""
    if not isinstance(thing, type):
        try:
            thing = get_type_hints(thing).get("return") if inspect.isfunction(thing) else None
        except (NameError, TypeError, AttributeError):  # an annotation that is not there when the module is run
            return False
    return isinstance(thing, type) and issubclass(thing, nn.Module)
