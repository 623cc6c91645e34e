"""Adapt the anatomy branch of a two_branch model to one case, so that its tissues do not depend on what a lesion shows.

Himmetoglu et al. 2025 (arXiv:2503.18840), section 3.1 and algorithm 1. The given model does not change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.evaluation.decision import decide
from multiseg.evaluation.inference import padded, part_of, predict_volume, window_corners
from multiseg.models.losses import consistency_loss, log_probabilities, soft_dice_loss
from multiseg.models.saved import Model
from multiseg.models.two_branch import CONSTANTS, TwoBranch, filled
from multiseg.models.two_unets import Branch, branch_space
from multiseg.types import Index3, Mask

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
FOUND = "found"
ADAPT_TO = {FOUND: 1.0, "half": 0.5, "quarter": 0.25}
"""By name, the share of the lesion that the lesion branch finds which a model is adapted to."""
TRUE_LESION = "true"
"""The name of the annotated lesion instead."""
VOXELS_AT_ONCE = 1_000_000
"""Of all windows that go through the branch together."""


@dataclass(frozen=True)
class AdaptOptions:
    """How a model is adapted to a case.

    Attributes:
        constants: the values that replace the lesion.
        rate, num_steps: step size of Adam, and the largest number of its steps.
    """

    constants: tuple[float, ...] = CONSTANTS
    rate: float = 1e-4
    num_steps: int = 10


@dataclass(frozen=True, eq=False)
class Adaptation:
    """A model for one case.

    Attributes:
        model: the adapted model; the given one if nothing was gained.
        num_steps: that were kept.
        before, after: the loss without and with them; NaN where nothing was tried.
        why_not: why nothing was tried; "" if it was.
        has_anchor: whether a labelled healthy image was part of the loss.
    """

    model: Model
    num_steps: int = 0
    before: float = math.nan
    after: float = math.nan
    why_not: str = ""
    has_anchor: bool = False

    def __str__(self) -> str:
        if self.why_not:
            return f"not adapted: {self.why_not}"
        anchor = "with" if self.has_anchor else "without"
        if not self.num_steps:
            return f"not adapted: the first step did not lower the loss of {self.before:.4f} ({anchor} an anchor)"
        return f"adapted in {self.num_steps} steps, loss {self.before:.4f} to {self.after:.4f}, {anchor} an anchor"


def check_adaptable(model: Model) -> TwoBranch:
    """The network of a model that can be adapted.

    Raises:
        UsageError: it is of another kind, or its anatomy branch has not learnt.
    """
    if not isinstance(model.network, TwoBranch):
        raise UsageError(
            f"only a two_branch model can be adapted, but this is a {model.info.builder}: leave out --adapt on."
        )
    if model.info.parts and "anatomy" not in model.info.parts:
        raise UsageError("the anatomy branch, which is adapted, has not learnt yet: leave out --adapt on.")
    return model.network


def adapted(
    model: Model,
    images: Float[np.ndarray, "modality i j k"],
    present: Bool[np.ndarray, " modality"],
    lesion: Mask,
    options: AdaptOptions | None = None,
) -> Adaptation:
    """Adapt a copy of the model to a case.

    With f the anatomy branch with its head, x the window of the case with most lesion voxels, x_c the same with the
    lesion replaced by the constant c, and x_A, y_A the anchor, a labelled healthy image in the model file:
        L(theta) = mean over c of Dice(f(x), f(x_c)) + Dice(f(x_A), y_A)   (the last equation of section 3.1)
    Adam minimises L over the parameters of the branch's norms and of its last block, in eval mode. It stops at the
    first step after which L is not lower, and this step is undone. Nothing is random.

    Args:
        images, present: as of `predict_volume`.
        lesion: where the case has a lesion.

    Raises:
        UsageError: the model cannot be adapted.
    """
    options = options or AdaptOptions()
    network = check_adaptable(model)
    device = next(network.parameters()).device
    shown = network.shown_to_anatomy(torch.from_numpy(present)[None])
    if not lesion.any():
        return Adaptation(model, why_not="there is no lesion")
    if not shown.any():
        return Adaptation(model, why_not="no sequence of the anatomy branch is given")
    x, mask = _window(np.where(present[:, None, None, None], images, 0), lesion, model.info.patch)
    # A copy: the next case must begin with the same weights.
    network = copy.deepcopy(network).eval().requires_grad_(False)
    learning = adapting_parameters(network)
    for parameter in learning:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(learning, lr=options.rate)
    losses: list[float] = []
    kept = [parameter.detach().clone() for parameter in learning]
    case = _Case(x.to(device), shown, mask.to(device), options.constants)
    for step in range(options.num_steps + 1):
        optimiser.zero_grad(set_to_none=True)
        loss = _loss_and_gradients(network, case)
        if losses and not loss < losses[-1]:
            break
        losses.append(loss)
        kept = [parameter.detach().clone() for parameter in learning]
        if step < options.num_steps:
            optimiser.step()
    has_anchor = network.anchor is not None
    if len(losses) == 1:
        return Adaptation(model, 0, losses[0], losses[0], has_anchor=has_anchor)
    with torch.no_grad():
        for parameter, value in zip(learning, kept, strict=True):
            parameter.copy_(value)
    better = Model(network.requires_grad_(False), model.info, model.learnt).eval()
    return Adaptation(better, len(losses) - 1, losses[0], losses[-1], has_anchor=has_anchor)


def adapting_parameters(network: TwoBranch) -> list[nn.Parameter]:
    """The parameters that are adapted: those of the anatomy branch's norms, and of its last block before the head."""
    norms = [module for module in network.anatomy.modules() if isinstance(module, NORMS)]
    modules: list[nn.Module] = [*norms, network.anatomy.last_block]
    return list({id(p): p for module in modules for p in module.parameters()}.values())


def lesion_of(
    model: Model, images: Float[np.ndarray, "modality i j k"], present: Bool[np.ndarray, " modality"], overlap: float
) -> Mask:
    """Where the lesion branch of the model answers a lesion; raises UsageError if it has not learnt."""
    if model.info.parts and "lesion" not in model.info.parts:
        raise UsageError(
            "the lesion branch has not learnt yet, so it cannot find the lesion that the model is adapted to: give it "
            "(predict --lesion-mask), or leave out --adapt on."
        )
    network, space = check_adaptable(model), branch_space(model.info.space, "lesion")
    probabilities = predict_volume(Branch(network, "lesion"), images, present, model.info.patch, overlap)
    found: Mask = decide(probabilities, space, np.ones(images.shape[1:], dtype=bool)) > 0
    return found


def check_adapt_to(name: str, adapts: bool) -> None:
    """Raises UsageError if no lesion to adapt to has this name, or one is chosen but nothing is adapted."""
    names = (*ADAPT_TO, TRUE_LESION)
    if name not in names:
        raise UsageError(f"--adapt-to is {name!r}: give one of {', '.join(names)}.")
    if name != FOUND and not adapts:
        raise UsageError(f"--adapt-to {name} is for an adaptation: add --adapt on, or leave it out.")


def shrunk(lesion: Mask, share: float, spacing_mm: Sequence[float]) -> Mask:
    """A smaller lesion: this share of its voxels, at least one, those nearest to one of them that is drawn at random.

    The same lesion gives the same part. Himmetoglu et al. 2025 (appendix E) remove patches of 10^3 voxels instead.
    """
    voxels = np.argwhere(lesion)
    if share >= 1 or not len(voxels):
        return lesion
    centre = voxels[np.random.default_rng(0).integers(len(voxels))]
    far = (((voxels - centre) * np.asarray(spacing_mm)) ** 2).sum(axis=1)
    kept = voxels[np.argsort(far, kind="stable")[: max(1, round(share * len(voxels)))]]
    smaller = np.zeros_like(lesion)
    smaller[tuple(kept.T)] = True
    return smaller


@dataclass(frozen=True, eq=False)
class _Case:
    """A window of a case [1 modality i j k], the sequences that the anatomy branch sees, and its lesion [1 i j k]."""

    window: Tensor
    shown: Tensor
    lesion: Tensor
    constants: Sequence[float]


def _window(images: Float[np.ndarray, "modality i j k"], lesion: Mask, patch: Index3) -> tuple[Tensor, Tensor]:
    """The window with most lesion voxels, and its lesion; both with a batch axis."""
    both = torch.from_numpy(np.concatenate([images, lesion[None]]).astype(np.float32))
    volume, _ = padded(both, patch)
    windows = [part_of(volume, corner, patch) for corner in window_corners(tuple(volume.shape[1:]), patch, 0.5)]
    window = max(windows, key=lambda one: float(one[-1].sum()))[None]
    return window[:, :-1], window[:, -1] > 0.5


def _loss_and_gradients(network: TwoBranch, case: _Case) -> float:
    """The loss; its gradients are added to those of the parameters."""
    total = 0.0
    for group in _groups(case):
        images = torch.cat([case.window, *(_filled(case, constant) for constant in group)])
        p = log_probabilities(network(images, case.shown.expand(len(images), -1), branch="anatomy")).exp()
        losses = [consistency_loss(p[:1], q[None]) for q in p[1:]]
        loss = torch.stack(losses).sum() / len(case.constants)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    anchor = network.anchor
    if anchor is not None:
        log_p = log_probabilities(network(anchor.images, anchor.present, branch="anatomy"))
        loss = soft_dice_loss(log_p, anchor.target, anchor.annotated, over_batch=True)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def _groups(case: _Case) -> Iterator[Sequence[float]]:
    """The constants, as many together as fit into `VOXELS_AT_ONCE` beside the window itself."""
    num = max(1, VOXELS_AT_ONCE // case.lesion.numel() - 1)
    for start in range(0, len(case.constants), num):
        yield case.constants[start : start + num]


def _filled(case: _Case, constant: float) -> Tensor:
    value = torch.full((1,), constant, device=case.window.device)
    return filled(case.window, case.shown, case.lesion, value)
