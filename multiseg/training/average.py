"""The moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


def average_of(network: nn.Module) -> nn.Module:
    """A copy of the network that takes no gradients, to hold the average."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, ema: float, step: int) -> None:
    """Move the average towards the network, in place.

    With t steps done before this one:
        decay_t = min(ema, (1 + t) / (10 + t)),  average := decay_t average + (1 - decay_t) weights
    so that the first weights, which are random, are soon forgotten. Buffers, such as the statistics of batch norm,
    are averages already and are copied.
    """
    decay = min(ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for target, source in zip(average.buffers(), network.buffers(), strict=True):
        target.copy_(source)
