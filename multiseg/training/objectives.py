"""Objectives that training minimises, by name: each maps (network, batch, step) to a loss and named scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.loaders.batches import Batch
from multiseg.models.losses import (
    cross_entropy,
    jaccard_distance,
    log_probabilities,
    maps,
    marginal,
    outside_brain,
    soft_dice_loss,
    squared_jaccard_distance,
    unsearched_outside,
    weights_by_kind,
)
from multiseg.own import check_takes, imported, is_own
from multiseg.training.consistency import Consistency, with_partners
from multiseg.training.distributed import bare

Objective: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]
OwnObjective: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Any]]]
"""An objective of the user: its scalars may be plain numbers."""


@dataclass(frozen=True)
class Targets:
    """What the logits of a batch are compared with, at one scale.

    Attributes:
        outside: the voxels outside the brain.
        weights: of the classes in a cross entropy; None for equal ones.
        tissues: the labels that are tissues; all others are lesions.
    """

    target: UInt8[Tensor, "batch i j k"]
    annotated: Bool[Tensor, "batch label"]
    outside: Bool[Tensor, "batch i j k"]
    weights: Float[Tensor, " class"] | None = None
    tissues: tuple[int, ...] = ()


Terms: TypeAlias = Callable[[Float[Tensor, "batch class i j k"], Targets], dict[str, Tensor]]
"""Maps log-probabilities and targets to named terms; the loss is their sum."""


@dataclass(frozen=True)
class LabelObjective:
    """An objective of multiseg; called like any `Objective`.

    Attributes:
        is_naive: whether background counts as background also for structures that a case is not annotated for. Such a
            loss teaches a model that the lesions of one database are absent in all others; it is for comparisons.
        has_cross_entropy: whether it has a term that class weights change.
        consistency: the weight of its consistency term where a run file does not give one.
    """

    terms: Terms
    is_naive: bool = False
    has_cross_entropy: bool = True
    consistency: float = 0.0

    def __call__(
        self,
        network: nn.Module,
        batch: Batch,
        step: int,
        weights: Float[Tensor, " class"] | None = None,
        consistency: Consistency | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The sum of the terms; over all scales of a network with deep supervision (Lee et al. 2015, arXiv:1409.5185).

        Scale s has logits of half the size of scale s - 1, and every 2^s-th voxel of the batch's target, so that codes
        are not mixed. With S scales the terms are averaged with weights 2^-s / (2 - 2^(1 - S)). The consistency term is
        of the finest scale alone.
        """
        partners = None if consistency is None else consistency.partners(batch, step)
        scales = _answers(network, *with_partners(batch, partners))
        mean: dict[str, Tensor] = {}
        outside = outside_brain(batch.images, batch.target)
        annotated = torch.ones_like(batch.annotated) if self.is_naive else batch.annotated
        weights = None if weights is None else weights.to(batch.images.device)
        for scale, logits in enumerate(scales):
            share = 0.5**scale / (2 - 0.5 ** (len(scales) - 1))
            every = (slice(None), *[slice(None, None, 2**scale)] * 3)
            targets = Targets(batch.target[every], annotated, outside[every], weights, batch.tissues)
            values = self.terms(log_probabilities(logits[: len(batch.target)]), targets)
            mean = {name: mean.get(name, 0) + share * value for name, value in values.items()}
        if consistency is not None:
            mean["consistency"] = consistency.term(log_probabilities(scales[0]), batch, partners)
        loss = torch.stack(list(mean.values())).sum()
        return loss, {name: value.detach() for name, value in mean.items()}


def _answers(
    network: nn.Module, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
) -> list[Tensor]:
    """The logits of every scale that the network learns at, finest first."""
    if int(getattr(bare(network), "num_scales", 1)) > 1:
        scales: list[Tensor] = network(images, present, deep=True)
        return scales
    return [network(images, present)]


def dice_and_cross_entropy(log_p: Float[Tensor, "batch class i j k"], targets: Targets) -> dict[str, Tensor]:
    """Dice of each sample, averaged, plus cross entropy (binary for a single structure), in equal parts.

    Dice alone gives hardly any gradient on patches without lesion; cross entropy punishes false positives
    there. Each sample has the same weight, however small its lesions: with a Dice over all voxels of a batch, large
    lesions would dominate and small ones would be missed.
    """
    dice = soft_dice_loss(log_p, targets.target, targets.annotated, over_batch=False)
    return {"dice_loss": dice, **adaptive_cross_entropy(log_p, targets)}


def batch_dice_and_cross_entropy(log_p: Float[Tensor, "batch class i j k"], targets: Targets) -> dict[str, Tensor]:
    """Dice over all voxels of the batch plus cross entropy: for one database with lesions of similar size."""
    dice = soft_dice_loss(log_p, targets.target, targets.annotated, over_batch=True)
    return {"dice_loss": dice, **adaptive_cross_entropy(log_p, targets)}


def adaptive_cross_entropy(log_p: Float[Tensor, "batch class i j k"], targets: Targets) -> dict[str, Tensor]:
    """Adaptive cross entropy (Roulet et al. 2019, eq. 4, with the labels of the database, not those of the patch).

    Background of a case stands for every structure that the case is not annotated for: see `losses.marginal`.
    """
    log_p = marginal(log_p, targets.annotated, targets.outside)
    return {"cross_entropy": cross_entropy(log_p, targets.target, targets.weights)}


def dice_alone(log_p: Float[Tensor, "batch class i j k"], targets: Targets) -> dict[str, Tensor]:
    """The published loss: soft Dice of each sample, averaged (Xu et al. 2024, as released).

    Structures that a case was not searched for have no gradient, except outside the brain, where they count as
    background (`unsearched_outside`, added to the same term). The published label never needs that.
    """
    dice = soft_dice_loss(log_p, targets.target, targets.annotated, over_batch=False)
    return {"dice_loss": dice + unsearched_outside(log_p, targets.target, targets.annotated, targets.outside)}


def joint_jaccard(
    log_p: Float[Tensor, "batch class i j k"],
    targets: Targets,
    distance: Callable[[Tensor, Tensor], Tensor] = jaccard_distance,
) -> dict[str, Tensor]:
    """Lesion risk plus tissue risk (Dorent et al. 2019, eq. 2 and 6; for the consistency term see `Consistency`).

    The risk of a structure is the mean distance over the patches of cases that were searched for it, with the weights
    of `weights_by_kind`. A structure for which no patch of the batch was searched adds nothing, and the others keep
    their weights. Outside the brain, unsearched structures count as background (`unsearched_outside`).
    """
    p, truth = maps(log_p, targets.target)
    searched = targets.annotated.float()
    risk = (distance(p, truth.float()) * searched).sum(0) / searched.sum(0).clamp(min=1)
    weighted = risk * weights_by_kind(len(risk), targets.tissues).to(risk)
    tissues = list(targets.tissues)
    lesions = [label for label in range(len(risk)) if label not in targets.tissues]
    risks = {"lesion_risk": lesions, "tissue_risk": tissues}
    outside = unsearched_outside(log_p, targets.target, targets.annotated, targets.outside)
    return {name: weighted[labels].sum() for name, labels in risks.items() if labels} | {"outside_brain": outside}


OBJECTIVES: dict[str, LabelObjective] = {
    "dice+bce": LabelObjective(dice_and_cross_entropy),
    "batch_dice+bce": LabelObjective(batch_dice_and_cross_entropy),
    "dice": LabelObjective(dice_alone, has_cross_entropy=False),
    "ace": LabelObjective(adaptive_cross_entropy),
    "ace+dice": LabelObjective(dice_and_cross_entropy),  # the same as dice+bce, under the name of Roulet et al. 2019
    "naive_ce": LabelObjective(adaptive_cross_entropy, is_naive=True),
    "naive_dice": LabelObjective(dice_alone, is_naive=True, has_cross_entropy=False),
    "joint_jaccard": LabelObjective(joint_jaccard, has_cross_entropy=False, consistency=1.0),
    "joint_jaccard_squared": LabelObjective(
        partial(joint_jaccard, distance=squared_jaccard_distance), has_cross_entropy=False, consistency=1.0
    ),
}


def objective_named(
    name: str, weights: Float[Tensor, " class"] | None = None, consistency: Consistency | None = None
) -> Objective:
    """The objective of this name.

    Args:
        weights: of the classes in its cross entropy, background first; None for equal ones.
        consistency: the term that it gets in addition; None for none.

    Raises:
        UsageError: there is none, or it has no cross entropy for the weights, or it is your own and cannot have a
            consistency term.
    """
    if is_own(name):
        objective = checked_objective(imported(name, "objective"), name)
        has_cross_entropy = False
    elif name in OBJECTIVES:
        objective, has_cross_entropy = OBJECTIVES[name], OBJECTIVES[name].has_cross_entropy
    else:
        raise UsageError(f"fit.objective is {name!r}: give one of {', '.join(OBJECTIVES)}, or your own as module:name.")
    if weights is not None and not has_cross_entropy:
        with_one = ", ".join(other for other, record in OBJECTIVES.items() if record.has_cross_entropy)
        raise UsageError(f"fit.class_weights has no effect on the objective {name!r}: it is for {with_one}.")
    if weights is None and consistency is None:
        return objective
    if name not in OBJECTIVES:
        refuse_consistency(name, consistency)
    return partial(OBJECTIVES[name], weights=weights, consistency=consistency)


def refuse_consistency(name: str, consistency: Consistency | None) -> None:
    """Raises UsageError for a consistency term of the user's own objective."""
    if consistency is not None:
        raise UsageError(
            f"fit.consistency is {consistency.weight}, but {name} is an objective of your own, which calls the network "
            "itself: set fit.consistency to 0 and add the term there, or choose an objective of multiseg."
        )


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
