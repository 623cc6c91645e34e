"""What training minimises, by name: (network, batch, step) to a loss and named scalars."""

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
"""The same, whose scalars may be plain numbers."""

Terms: TypeAlias = Callable[
    [
        Float[Tensor, "batch class i j k"],
        UInt8[Tensor, "batch i j k"],
        Bool[Tensor, "batch label"],
        Bool[Tensor, "batch i j k"],
    ],
    dict[str, Tensor],
]
"""From log-probabilities, targets, what is annotated and where is outside the brain to what adds up to the loss."""


def _minimised(network: nn.Module, batch: Batch, terms: Terms) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The sum of the terms; over all scales of a network under deep supervision (Lee et al. 2015, arXiv:1409.5185).

    Scale s has logits of half the size of the one before, and as target every 2^s-th voxel of the batch's: no
    code is blended with another. With S scales the terms are averaged with weights 2^-s / (2 - 2^(1 - S)).
    """
    num_scales = int(getattr(bare(network), "num_scales", 1))
    deep = {"deep": True} if num_scales > 1 else {}
    answer = network(batch.images, batch.present, **deep)
    scales = answer if deep else [answer]
    mean: dict[str, Tensor] = {}
    outside = outside_brain(batch.images, batch.target)
    for scale, logits in enumerate(scales):
        weight = 0.5**scale / (2 - 0.5 ** (len(scales) - 1))
        every = (slice(None), *[slice(None, None, 2**scale)] * 3)
        found = terms(log_probabilities(logits), batch.target[every], batch.annotated, outside[every])
        mean = {name: mean.get(name, 0) + weight * value for name, value in found.items()}
    loss = torch.stack(list(mean.values())).sum()
    return loss, {name: value.detach() for name, value in mean.items()}


def dice_and_cross_entropy(network: nn.Module, batch: Batch, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Dice of each sample, averaged, plus cross entropy (binary, for a single structure), in equal parts.

    Dice alone gives hardly any gradient on patches without lesion; cross entropy punishes false positives
    there. Each sample counts alike, however small its lesions: where databases with large and small lesions
    share a batch, a Dice over all its voxels is that of the large ones, and the small ones are missed.
    """
    return _minimised(network, batch, partial(_both, over_batch=False))


def batch_dice_and_cross_entropy(
    network: nn.Module, batch: Batch, step: int
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Dice over all voxels of the batch plus cross entropy: for one database, whose lesions are alike in size."""
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

    It says nothing of structures that a case was not searched for. Outside the brain these are held against
    background as well (`unsearched_outside`, added to the same term), which the published label never needs.
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
    """The objective of this name.

    Raises:
        UsageError: there is none.
    """
    if is_own(name):
        return checked_objective(imported(name, "objective"), name)
    if name not in OBJECTIVES:
        raise UsageError(f"{name!r} is none of {', '.join(OBJECTIVES)}, and your own is module:name.")
    return OBJECTIVES[name]


def checked_objective(objective: OwnObjective, name: str) -> Objective:
    """An objective of one's own as the loop calls it: what it returns is looked at in every step.

    Raises:
        UsageError: it cannot be called as (network, batch, step); in a step, that it failed, or returned something else
            than a loss and named scalars, always the same ones.
    """
    check_takes(objective, 3, "objective", "(network, batch, step)", name)
    known: list[str] = []

    def minimised(network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        found = objective(network, batch, step)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
            raise UsageError(f"the objective {name} returned {type(found).__name__}: return (loss, dict of scalars).")
        loss, scalars = found
        if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
            said = (
                f"{tuple(loss.shape)}, requires_grad={loss.requires_grad}" if isinstance(loss, Tensor) else repr(loss)
            )
            raise UsageError(
                f"the loss of {name} is {said}: return a tensor of no axes with a gradient, such as a mean."
            )
        known[:] = known or list(scalars)
        # One process adds up its scalars with those of the others by their order.
        if list(scalars) != known or "loss" in known:
            raise UsageError(
                f"the objective {name} returned the scalars {list(scalars)} after {known}: return the same ones in "
                'every step, in one order, and none called "loss".'
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
    said = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise UsageError(f"the scalar {key!r} of {name} is {said}: return one number by each name.")
