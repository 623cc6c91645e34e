"""What a training takes of the caller's own: how it is recorded, and one try of it before the first step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
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
from multiseg.training.fit import check
from multiseg.training.objectives import Objective, OwnObjective, checked_objective, objective_named
from multiseg.training.optimisers import OwnOptimiser, check_optimiser
from multiseg.training.run_folder import TrainOptions


@dataclass(frozen=True, eq=False)
class OwnParts:
    """What was passed as itself rather than by name; the options hold its name for the record."""

    network: Builder | None = None
    objective: Objective | None = None
    optimiser: OwnOptimiser | None = None
    augment: Transform | None = None

    def check(self, options: TrainOptions) -> None:
        """Raises UsageError where an objective, an optimiser or a setting of them is invalid or not there."""
        check(options.fit, self.objective)
        check_optimiser(options.optimiser, self.optimiser)
        augmenter(options.augment, self.augment)


def taken(
    options: TrainOptions,
    network: Builder | str | None,
    objective: OwnObjective | str | None,
    optimiser: OwnOptimiser | str | None,
    augment: Transform | str | None,
) -> tuple[TrainOptions, OwnParts]:
    """The options with the names of what is given, and what is given that is no name.

    Raises:
        UsageError: something cannot be called as it has to be.
    """
    for name, known in NETWORKS.items():
        network = name if network is known else network
    if isinstance(network, nn.Module):
        raise UsageError(
            f"network is a {type(network).__name__} that is made already: pass its class, or a function that makes it "
            "from (num_modalities, num_logits), since the store says how many these are."
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


def _recorded(given: Any, kind: str) -> str:
    if not (isinstance(given, str) or callable(given)):
        raise UsageError(f"{kind} is {given!r}: give a function or a class, or a name.")
    return given if isinstance(given, str) else name_of(given)


def warn_of_closed(own: OwnParts) -> None:
    """Warn of a network that a model file can name, but nobody else can make from the name."""
    if own.network is not None and not (is_importable(own.network) and makes_network(own.network)):
        warnings.warn(
            f"the network {name_of(own.network)} cannot be imported as a network, so that only load_model(path, "
            "network=...) opens what is trained: define it in a module that can be imported, as a class derived from "
            "torch.nn.Module or a function annotated to return one.",
            UserWarning,
            stacklevel=3,
        )


def try_out(network: nn.Module, own: OwnParts, options: TrainOptions, info: ModelInfo) -> None:
    """Show what is somebody's own one batch of made-up patches, on a copy of the network, before the first step.

    Random numbers are as they were, afterwards. What is multiseg's own is not tried.

    Raises:
        UsageError: something fails, or its answer is not of the form that the loop needs; the message says which.
    """
    tries_network = is_own(info.builder)
    tries_objective, tries_augment = is_own(options.fit.objective), bool(options.augment.own)
    if not (tries_network or tries_objective or tries_augment):
        return
    device = next(network.parameters(), torch.zeros(0)).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        batch = _made_up(options, info, device)
        trial = copy.deepcopy(network)
        if tries_network:
            _try_network(trial, batch, info)
        if tries_augment:
            with blamed("augmentation", options.augment.own):
                batch = augmenter(options.augment, own.augment)(batch)
        if tries_objective:
            objective = own.objective or objective_named(options.fit.objective)
            with blamed("objective", options.fit.objective):
                loss, _ = objective(trial.train(), batch, 0)
                loss.backward()  # type: ignore[no-untyped-call]


def _made_up(options: TrainOptions, info: ModelInfo, device: torch.device) -> Batch:
    num, patch, labels = min(2, options.stream.batch_size), options.stream.draw.patch, len(info.space.names)
    return Batch(
        images=torch.randn(num, len(info.axis), *patch),
        present=torch.ones(num, len(info.axis), dtype=torch.bool),
        target=torch.randint(labels + 1, (num, *patch), dtype=torch.uint8),
        annotated=torch.ones(num, labels, dtype=torch.bool),
        database=("made up",) * num,
        case=("made up",) * num,
        corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.zeros(num, 2, dtype=torch.int64),
    ).to(device)


def _try_network(network: nn.Module, batch: Batch, info: ModelInfo) -> None:
    name, wanted = info.builder, (len(batch.case), info.space.num_logits, *batch.images.shape[2:])
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError(f"the network {name} has no parameter that learns.")
    modes: dict[str, Callable[[], nn.Module]] = {"eval": network.eval, "train": network.train}
    for mode, enter in modes.items():
        with torch.no_grad(), blamed("network", name):
            logits = enter()(batch.images, batch.present)
        said = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if said != wanted or not logits.is_floating_point():
            raise UsageError(
                f"the network {name} returned {said} in {mode} mode: called as (images, present) with images of "
                f"{tuple(batch.images.shape)}, it has to return one tensor of logits {wanted}."
            )
