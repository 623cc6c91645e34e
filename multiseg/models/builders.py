"""Networks by name, their numbers written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from multiseg.errors import UsageError
from multiseg.models.unet import MultiUnet

PUBLISHED_WIDTHS = (16, 32, 64, 128, 256)


def multi_unet(
    num_modalities: int, num_logits: int, widths: Sequence[int] = PUBLISHED_WIDTHS, dropout: float = 0.2
) -> MultiUnet:
    """The published Multi-Unet: 8,900,930 parameters for 6 sequences and one logit."""
    return MultiUnet(num_modalities, num_logits, tuple(widths), dropout)


BUILDERS: dict[str, Callable[..., nn.Module]] = {"multi_unet": multi_unet}


def build(name: str, num_modalities: int, num_logits: int, **numbers: object) -> nn.Module:
    """The network of this name.

    Raises:
        UsageError: there is no such network.
    """
    if name not in BUILDERS:
        raise UsageError(f"there is no network {name!r}; there are {', '.join(BUILDERS)}.")
    return BUILDERS[name](num_modalities, num_logits, **numbers)
