"""How the updates of many sites become one: part by part, over the sites that trained it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.plan import AggregateOptions
from multiseg.federation.privacy import update_norm
from multiseg.models.parts import SHARED, Part

Update = Mapping[str, Tensor]
"""New minus received, by name of the part."""


@dataclass(frozen=True, eq=False)
class Mean:
    """The sites' updates as one.

    Attributes:
        update: by part, float32; a part that nobody sent is left out.
        contributors: by part, the sites whose updates count in it, in order of their names.
        scaled: sites whose update was longer than allowed and scaled down.
    """

    update: Mapping[str, Tensor]
    contributors: Mapping[str, tuple[str, ...]]
    scaled: tuple[str, ...] = ()


def refused(update: Update, shapes: Mapping[str, tuple[int, ...]], masked: bool = False) -> str:
    """Why an update cannot be used, or "" where it can.

    Args:
        shapes: of all parts that the site may send.
        masked: what is expected is masked, whole numbers of 32 bits, not floating-point numbers.
    """
    for name in sorted(update):
        tensor = update[name]
        if name not in shapes:
            return f"it holds {name!r}, which is no part that this site trains"
        if tuple(tensor.shape) != tuple(shapes[name]):
            return f"{name!r} is {tuple(tensor.shape)}, but the part is {tuple(shapes[name])}"
        if (tensor.dtype == torch.int32) if masked else tensor.is_floating_point():
            if not masked and not bool(torch.isfinite(tensor).all()):
                bad = int((~torch.isfinite(tensor)).sum())
                return f"{name!r} holds {bad} values of {tensor.numel()} that are not finite"
        else:
            return f"{name!r} is {tensor.dtype}, but {'torch.int32' if masked else 'floating point'} is expected"
    return ""


def aggregated(
    updates: Mapping[str, Update],
    weights: Mapping[str, Mapping[str, float]],
    parts: Sequence[Part],
    options: AggregateOptions,
) -> Mean:
    """The updates as one, whatever the order they came in."""
    raise NotImplementedError
