"""What training minimises, by name: (network, batch, step) to a loss and named scalars."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from multiseg.loaders.batches import Batch
from multiseg.models.losses import cross_entropy, log_probabilities, marginal, soft_dice_loss

Objective: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]


def dice_and_cross_entropy(network: nn.Module, batch: Batch, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Dice over the batch plus cross entropy (binary, for a single structure), in equal parts.

    Dice alone gives hardly any gradient on patches without lesion; cross entropy punishes false
    positives there.
    """
    log_p = marginal(log_probabilities(network(batch.images, batch.present)), batch.annotated)
    dice = soft_dice_loss(log_p, batch.target, batch.annotated, over_batch=True)
    entropy = cross_entropy(log_p, batch.target)
    return dice + entropy, {"dice_loss": dice.detach(), "cross_entropy": entropy.detach()}


def dice_alone(network: nn.Module, batch: Batch, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The published loss: soft Dice of each sample, averaged (Xu et al. 2024, as released)."""
    log_p = marginal(log_probabilities(network(batch.images, batch.present)), batch.annotated)
    dice = soft_dice_loss(log_p, batch.target, batch.annotated, over_batch=False)
    return dice, {"dice_loss": dice.detach()}


OBJECTIVES: dict[str, Objective] = {"dice+bce": dice_and_cross_entropy, "dice": dice_alone}
