"""Meta-learning of the anatomy branch: it learns to be adapted to a lesion (Himmetoglu et al. 2025, section 3.3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad

from multiseg.errors import UsageError
from multiseg.evaluation.adaptation import FOUND, TRUE_LESION
from multiseg.loaders.batches import Batch, Donor
from multiseg.loaders.graft_source import Grafted
from multiseg.modalities import as_names
from multiseg.models.losses import consistency_loss, log_probabilities, soft_dice_loss
from multiseg.models.two_branch import CONSTANTS, filled
from multiseg.models.two_unets import Branch
from multiseg.training.fit import Stream
from multiseg.training.objectives import Objective

STREAM = 0x3E7A
"""Part of the generator's seed, so that the constants share no random numbers with other draws."""
Parameters: TypeAlias = Mapping[str, Tensor]


@runtime_checkable
class GraftSource(Protocol):
    """Draws a lesion for each patch of a batch, as `multiseg.loaders.graft.Grafts` does."""

    def draw(self, batch: Batch) -> Grafted: ...


@dataclass(frozen=True)
class MetaOptions:
    """How the anatomy branch learns to be adapted, in the stage cotrain.

    Attributes:
        inner_rate: step size alpha of the inner step; 0 leaves the step out.
        first_order: whether the outer gradient takes the inner gradient as a constant, which needs less memory and
            time (Finn et al. 2017, arXiv:1703.03400, section 5.2).
        donors: the databases whose lesions are pasted into the healthy patches; empty takes all others with lesions
            and a template.
        anchor: a labelled healthy case, "DATABASE/CASE", that the model file will hold, for adaptations (see
            `anchors.py`); "" for none.
        adapt_to: the lesions that the stage pseudo_label adapts the anatomy branch to: "true", those of the annotation,
            or "found", those that the lesion branch finds. Other stages refuse the second.
        pseudo_labels: the folder of a stage pseudo_label, from which the stage joint learns; a run of stages sets it.

    Raises:
        UsageError: the step size is not a finite number from 0 on, or there are no such lesions to adapt to.
    """

    inner_rate: float = 0.005
    first_order: bool = False
    donors: str | tuple[str, ...] = ()
    anchor: str = ""
    adapt_to: str = TRUE_LESION
    pseudo_labels: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "donors", as_names(self.donors))
        if not 0 <= self.inner_rate < math.inf:
            raise UsageError(f"meta.inner_rate is {self.inner_rate}: give a number from 0 on, such as 0.005.")
        if self.adapt_to not in (TRUE_LESION, FOUND):
            raise UsageError(f"meta.adapt_to is {self.adapt_to!r}: give {TRUE_LESION} or {FOUND}.")


@dataclass(frozen=True)
class GraftStream:
    """The healthy patches of a stream, each with a lesion to paste into it; itself a `Stream`. Batch n is always the
    same."""

    healthy: Stream
    grafts: GraftSource

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` (exclusive): those of `healthy` with a `Donor`."""
        for batch in self.healthy.batches(start, stop):
            grafted = self.grafts.draw(batch)
            yield replace(batch, donor=Donor(grafted.pasted.images, grafted.lesion))


def adapted_parameters(
    loss: Callable[[Parameters], Float[Tensor, ""]], parameters: Parameters, rate: float, first_order: bool = False
) -> dict[str, Tensor]:
    """The parameters after one step of gradient descent, theta' = theta - rate grad loss(theta) (equation 8).

    The result is differentiable with respect to theta; with `first_order` as if the gradient were a constant.
    """
    if first_order:
        with torch.no_grad():
            gradients = grad(loss)(dict(parameters))
    else:
        gradients = grad(loss)(dict(parameters))
    return {name: value - rate * gradients[name] for name, value in parameters.items()}


def meta_objective(options: MetaOptions, seed: int) -> Objective:
    """The outer loss after an inner step, for the stage cotrain; the network is a TwoBranch, the batch has a `Donor`.

    With f the anatomy branch with its head, x_A a healthy patch with the tissues y_A, x_P the same with a pasted
    lesion, and x~ as x_P with the lesion replaced by one constant of `CONSTANTS` (drawn for each patch):
        L_i(theta) = Dice(f(x_P), f(x~)) + Dice(f(x_A), y_A),   theta' = theta - alpha grad L_i(theta),
        L_o = Dice(f'(x_P), y_A) + Dice(f'(x~), y_A) + Dice(f'(x_A), y_A)   (equations 8 and 9)
    where y_A has the healthy tissues also under the lesion. Dice is over all voxels of the batch. Patches without a
    lesion have only the terms of x_A. If no patch of a batch has one, there is no inner step, and the loss is
    Dice(f(x_A), y_A). With alpha = 0 theta' is theta.
    """
    return partial(_outer, options=options, seed=seed)


def _outer(
    network: nn.Module, batch: Batch, step: int, options: MetaOptions, seed: int
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    assert batch.donor is not None
    view = Branch(network, "anatomy")
    parameters: dict[str, Tensor] = {name: value for name, value in view.named_parameters() if value.requires_grad}
    lesion = batch.donor.lesion
    rows = lesion.flatten(1).any(dim=1)
    pasted = torch.where(rearrange(lesion, "b i j k -> b 1 i j k"), batch.donor.images, batch.images)[rows]
    present, healthy = batch.present[rows], batch.images
    emptied = filled(pasted, present, lesion[rows], _constants(batch, seed)[rows])

    def answers(parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of x_P, x~ and x_A."""
        images = torch.cat([pasted, emptied, healthy])
        logits = functional_call(view, dict(parameters), (images, torch.cat([present, present, batch.present])))
        num = len(pasted)
        log_p = log_probabilities(logits)
        return log_p[:num], log_p[num : 2 * num], log_p[2 * num :]

    def dice(log_p: Tensor, of: Bool[Tensor, " batch"] | slice) -> Tensor:
        return soft_dice_loss(log_p, batch.target[of], batch.annotated[of], over_batch=True)

    def inner(parameters: Parameters) -> Tensor:
        with_lesion, constant, without = answers(parameters)
        return consistency_loss(with_lesion.exp(), constant.exp()) + dice(without, slice(None))

    has_lesion = bool(rows.any())
    if has_lesion and options.inner_rate:
        parameters = adapted_parameters(inner, parameters, options.inner_rate, options.first_order)
    with_lesion, constant, without = answers(parameters)
    zero = without.new_zeros(())
    terms = {
        "pasted": dice(with_lesion, rows) if has_lesion else zero,
        "constant": dice(constant, rows) if has_lesion else zero,
        "healthy": dice(without, slice(None)),
    }
    loss = torch.stack(list(terms.values())).sum()
    return loss, {name: value.detach() for name, value in terms.items()}


def _constants(batch: Batch, seed: int) -> Float[Tensor, " batch"]:
    """A constant for each patch, as a pure function of the seed and the patch's (epoch, index)."""
    keys = [(seed, epoch, index, STREAM) for epoch, index in batch.draws.tolist()]
    drawn = [float(np.random.default_rng(key).choice(CONSTANTS)) for key in keys]
    return torch.tensor(drawn, dtype=torch.float32, device=batch.images.device)
