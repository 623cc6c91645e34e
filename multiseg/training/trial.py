"""The user's own parts of a training (network, objective, ...): recorded by name, and tried before the first step."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.loaders.augment import augmenter
from multiseg.loaders.batches import Batch
from multiseg.loaders.transform import SIGNATURE, Transform
from multiseg.models.builders import NETWORKS, Builder, makes_network
from multiseg.models.saved import ModelInfo
from multiseg.own import blamed, check_takes, is_importable, is_own, name_of
from multiseg.training.fit import check_fit
from multiseg.training.objectives import Objective, OwnObjective, checked_objective, objective_named
from multiseg.training.optimisers import OwnOptimiser, check_optimiser
from multiseg.training.run_folder import TrainOptions


@dataclass(frozen=True, eq=False)
class OwnParts:
    """Parts that were passed as objects rather than by name; the options hold their names for the record."""

    network: Builder | None = None
    objective: Objective | None = None
    optimiser: OwnOptimiser | None = None
    augment: Transform | None = None

    def check(self, options: TrainOptions) -> None:
        """Raises UsageError if an objective, an optimiser, an augmentation or one of their settings is invalid."""
        check_fit(options.fit, self.objective)
        check_optimiser(options.optimiser, self.optimiser)
        augmenter(options.augment, self.augment)


def split_own(
    options: TrainOptions,
    network: Builder | str | None,
    objective: OwnObjective | str | None,
    optimiser: OwnOptimiser | str | None,
    augment: Transform | str | None,
) -> tuple[TrainOptions, OwnParts]:
    """The options with the names of all parts, and those parts that are objects.

    Raises:
        UsageError: a part cannot be called with the required arguments.
    """
    for name, record in NETWORKS.items():
        network = name if network is record else network
    if isinstance(network, nn.Module):
        raise UsageError(
            f"network is an instance of {type(network).__name__}: pass its class, or a function that makes it from "
            "(num_modalities, num_logits), which the store determines."
        )
    if network is not None:
        options = replace(options, model=replace(options.model, builder=_recorded(network, "network")))
    if objective is not None:
        options = replace(options, fit=replace(options.fit, objective=_recorded(objective, "objective")))
    if optimiser is not None:
        options = replace(options, optimiser=replace(options.optimiser, name=_recorded(optimiser, "optimiser")))
    if augment is not None:
        options = replace(options, augment=replace(options.augment, own=_recorded(augment, "augmentation")))
    if augment is not None and not isinstance(augment, str):
        check_takes(augment, 3, "augmentation", SIGNATURE)
    checked = None
    if objective is not None and not isinstance(objective, str):
        checked = checked_objective(objective, name_of(objective))
    return options, OwnParts(
        network=None if isinstance(network, str) else network,
        objective=checked,
        optimiser=None if isinstance(optimiser, str) else optimiser,
        augment=None if isinstance(augment, str) else augment,
    )


def _recorded(part: Any, kind: str) -> str:
    if isinstance(part, str):
        return part
    if not callable(part):
        raise UsageError(f"{kind} is {part!r}: give a function, a class or a name.")
    return name_of(part)


def warn_if_not_importable(own: OwnParts) -> None:
    """Warn of a network that cannot be made from the name in the model file."""
    if own.network is not None and not (is_importable(own.network) and makes_network(own.network)):
        warnings.warn(
            f"the network {name_of(own.network)} cannot be imported as a network, so only load_model(path, "
            "network=...) can open the trained model: define it in a module that can be imported, as a class derived "
            "from torch.nn.Module or a function annotated to return one.",
            UserWarning,
            stacklevel=3,
        )


def try_out(network: nn.Module, own: OwnParts, options: TrainOptions, info: ModelInfo) -> None:
    """Call the user's own parts with one random batch, on a copy of the network, before the first step.

    The state of the random generators stays. Parts of multiseg are not tried.

    Raises:
        UsageError: a part fails or returns something that the loop cannot use.
    """
    has_network = is_own(info.builder)
    has_objective, has_augment = is_own(options.fit.objective), bool(options.augment.own)
    if not (has_network or has_objective or has_augment):
        return
    device = next(network.parameters(), torch.zeros(0)).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        batch = _random_batch(options, info, device)
        trial = copy.deepcopy(network)
        if has_network:
            _try_network(trial, batch, info)
        if has_augment:
            with blamed("augmentation", options.augment.own):
                batch = augmenter(options.augment, own.augment)(batch)
        if has_objective:
            objective = own.objective or objective_named(options.fit.objective)
            with blamed("objective", options.fit.objective):
                loss, _ = objective(trial.train(), batch, 0)
                loss.backward()  # type: ignore[no-untyped-call]


def _random_batch(options: TrainOptions, info: ModelInfo, device: torch.device) -> Batch:
    num, patch, num_labels = min(2, options.stream.batch_size), options.stream.draw.patch, len(info.space.names)
    return Batch(
        images=torch.randn(num, len(info.axis), *patch),
        present=torch.ones(num, len(info.axis), dtype=torch.bool),
        target=torch.randint(num_labels + 1, (num, *patch), dtype=torch.uint8),
        annotated=torch.ones(num, num_labels, dtype=torch.bool),
        database=("random",) * num,
        case=("random",) * num,
        corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.zeros(num, 2, dtype=torch.int64),
        tissues=info.space.tissues,
        sequences=tuple(info.axis),
    ).to(device)


def _try_network(network: nn.Module, batch: Batch, info: ModelInfo) -> None:
    name, expected = info.builder, (len(batch.case), info.space.num_logits, *batch.images.shape[2:])
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError(f"the network {name} has no parameter with requires_grad.")
    for mode in ("eval", "train"):
        network.train(mode == "train")
        with torch.no_grad(), blamed("network", name):
            logits = network(batch.images, batch.present)
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if returned != expected or not logits.is_floating_point():
            raise UsageError(
                f"the network {name} returned {returned} in {mode} mode: called as (images, present) with images of "
                f"{tuple(batch.images.shape)}, it must return one tensor of logits {expected}."
            )
