"""Running statistics of batch normalisation at a site that has none of its own yet (as FedUniBrain does)."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from multiseg.loaders.batches import Batch

NUM_BATCHES = 20


def personal_norms(network: nn.Module, patterns: Iterable[str]) -> list[_BatchNorm]:
    """The layers whose running statistics never leave a site."""
    patterns = tuple(patterns)
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and any(fnmatchcase(f"{name}.running_mean", pattern) for pattern in patterns)
    ]


def estimate(network: nn.Module, layers: Iterable[_BatchNorm], batches: Iterable[Batch]) -> None:
    """Set the layers' running mean and variance to their averages over these batches; nothing else changes.

    The network computes as in evaluation but for these layers, which normalise each batch by itself.
    """
    layers = list(layers)
    device = next(network.parameters()).device
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]  # type: ignore[union-attr]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
        layer.train()
    with torch.no_grad():
        for batch in batches:
            here = batch.to(device)
            network(here.images, here.present)
    for layer, (momentum, tracked) in zip(layers, before, strict=True):
        layer.momentum, layer.num_batches_tracked = momentum, tracked
