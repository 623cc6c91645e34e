"""Objectives that training minimises, by name: each maps (network, batch, step) to a loss and named scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.loaders.batches import Batch
from multiseg.models.losses import (
    cross_entropy,
    log_probabilities,
    marginal,
    outside_brain,
    soft_dice_loss,
    unsearched_outside,
)
from multiseg.own import check_takes, imported, is_own
from multiseg.training.distributed import bare

Objective: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]
OwnObjective: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Any]]]
"""An objective of the user: its scalars may be plain numbers."""

Terms: TypeAlias = Callable[
    [
        Float[Tensor, "batch class i j k"],
        UInt8[Tensor, "batch i j k"],
        Bool[Tensor, "batch label"],
        Bool[Tensor, "batch i j k"],
    ],
    dict[str, Tensor],
]
"""Maps log-probabilities, targets, annotated labels and the mask outside the brain to named terms; the loss is their
sum."""


def _minimised(network: nn.Module, batch: Batch, terms: Terms) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The sum of the terms; over all scales of a network with deep supervision (Lee et al. 2015, arXiv:1409.5185).

    Scale s has logits of half the size of scale s - 1, and every 2^s-th voxel of the batch's target, so that codes are
    not mixed. With S scales the terms are averaged with weights 2^-s / (2 - 2^(1 - S)).
    """
    is_deep = int(getattr(bare(network), "num_scales", 1)) > 1
    scales = network(batch.images, batch.present, deep=True) if is_deep else [network(batch.images, batch.present)]
    mean: dict[str, Tensor] = {}
    outside = outside_brain(batch.images, batch.target)
    for scale, logits in enumerate(scales):
        weight = 0.5**scale / (2 - 0.5 ** (len(scales) - 1))
        every = (slice(None), *[slice(None, None, 2**scale)] * 3)
        values = terms(log_probabilities(logits), batch.target[every], batch.annotated, outside[every])
        mean = {name: mean.get(name, 0) + weight * value for name, value in values.items()}
    loss = torch.stack(list(mean.values())).sum()
    return loss, {name: value.detach() for name, value in mean.items()}


def dice_and_cross_entropy(network: nn.Module, batch: Batch, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Dice of each sample, averaged, plus cross entropy (binary for a single structure), in equal parts.

    Dice alone gives hardly any gradient on patches without lesion; cross entropy punishes false positives
    there. Each sample has the same weight, however small its lesions: with a Dice over all voxels of a batch, large
    lesions would dominate and small ones would be missed.
    """
    return _minimised(network, batch, partial(_both, over_batch=False))


def batch_dice_and_cross_entropy(
    network: nn.Module, batch: Batch, step: int
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Dice over all voxels of the batch plus cross entropy: for one database with lesions of similar size."""
    return _minimised(network, batch, partial(_both, over_batch=True))


def _both(
    log_p: Float[Tensor, "batch class i j k"],
    target: UInt8[Tensor, "batch i j k"],
    annotated: Bool[Tensor, "batch label"],
    outside: Bool[Tensor, "batch i j k"],
    over_batch: bool,
) -> dict[str, Tensor]:
    dice = soft_dice_loss(log_p, target, annotated, over_batch)
    return {"dice_loss": dice, "cross_entropy": cross_entropy(marginal(log_p, annotated, outside), target)}


def dice_alone(network: nn.Module, batch: Batch, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The published loss: soft Dice of each sample, averaged (Xu et al. 2024, as released).

    Structures that a case was not searched for have no gradient, except outside the brain, where they count as
    background (`unsearched_outside`, added to the same term). The published label never needs that.
    """
    return _minimised(network, batch, _dice_alone)


def _dice_alone(
    log_p: Float[Tensor, "batch class i j k"],
    target: UInt8[Tensor, "batch i j k"],
    annotated: Bool[Tensor, "batch label"],
    outside: Bool[Tensor, "batch i j k"],
) -> dict[str, Tensor]:
    dice = soft_dice_loss(log_p, target, annotated, over_batch=False)
    return {"dice_loss": dice + unsearched_outside(log_p, target, annotated, outside)}


OBJECTIVES: dict[str, Objective] = {
    "dice+bce": dice_and_cross_entropy,
    "batch_dice+bce": batch_dice_and_cross_entropy,
    "dice": dice_alone,
}


def objective_named(name: str) -> Objective:
    """The objective of this name; raises UsageError if there is none."""
    if is_own(name):
        return checked_objective(imported(name, "objective"), name)
    if name not in OBJECTIVES:
        raise UsageError(f"fit.objective is {name!r}: give one of {', '.join(OBJECTIVES)}, or your own as module:name.")
    return OBJECTIVES[name]


def checked_objective(objective: OwnObjective, name: str) -> Objective:
    """Wrap the user's objective so that its result is checked in every step.

    Raises:
        UsageError: it cannot be called as (network, batch, step). In a step: it did not return a loss and named
            scalars, always the same ones.
    """
    check_takes(objective, 3, "objective", "(network, batch, step)", name)
    expected: list[str] = []

    def minimised(network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        result = objective(network, batch, step)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
            raise UsageError(f"the objective {name} returned {type(result).__name__}: return (loss, dict of scalars).")
        loss, scalars = result
        if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
            value = repr(loss)
            if isinstance(loss, Tensor):
                value = f"{tuple(loss.shape)}, requires_grad={loss.requires_grad}"
            raise UsageError(
                f"the loss of {name} is {value}: return a tensor without axes and with a gradient, such as a mean."
            )
        expected[:] = expected or list(scalars)
        # Scalars of several processes are summed by position.
        if list(scalars) != expected or "loss" in expected:
            raise UsageError(
                f"the objective {name} returned the scalars {list(scalars)} after {expected}: return the same ones in "
                'the same order in every step, and none called "loss".'
            )
        return loss, {str(key): _scalar(value, key, name, loss.device) for key, value in scalars.items()}

    return minimised


def _scalar(value: object, key: str, name: str, device: torch.device) -> Tensor:
    try:
        scalar = torch.as_tensor(value, device=device).detach()
        if scalar.numel() == 1:
            return scalar.reshape(()).float()
    except (TypeError, ValueError, RuntimeError):
        pass
    shown = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise UsageError(f"the scalar {key!r} of {name} is {shown}: return one number for each name.")
