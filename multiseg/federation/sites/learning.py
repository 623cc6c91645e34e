"""A site's training steps of a round, from the received model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multiseg.errors import FederationError, StoppedError, UsageError
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.personal import PersonalState, moments_of, take_moments
from multiseg.loaders.batches import Batch
from multiseg.models.builders import build
from multiseg.models.saved import ModelInfo
from multiseg.training.checkpoint import TrainState
from multiseg.training.events import Event, StepDone
from multiseg.training.fit import Hooks, Stream, fit
from multiseg.training.numerics import precision

NUM_BATCHES = 20
"""Enough to estimate running statistics."""


@dataclass(frozen=True, eq=False)
class Learnt:
    """The result of the steps of a round.

    Attributes:
        loss: mean over the steps with a finite loss; NaN if there are none.
        bad_steps: steps that changed nothing, since the loss or a gradient was not finite.
        moments, scaler: of the optimiser and of mixed precision, after the last step.
    """

    loss: float
    bad_steps: int
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    scaler: Mapping[str, object] = field(default_factory=dict)


def network_of(info: ModelInfo, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """The network with this state, on a device; FederationError if they do not fit."""
    try:
        network = build(info.builder, len(info.axis), info.space.num_logits, **info.numbers)
        network.load_state_dict(state)
    except (RuntimeError, TypeError, UsageError) as error:
        raise FederationError(f"the weights received do not fit a {info.builder} as described: {error}") from error
    return network.to(device)


def learn(
    network: nn.Module,
    stream: Stream,
    options: FederationOptions,
    steps_done: int,
    hooks: Hooks | None = None,
    own: PersonalState | None = None,
) -> Learnt:
    """Train the network for the steps of one round, after `steps_done` of the rounds before.

    With FedProx the gradient of mu / 2 * |w - w_received|^2, which is mu (w - w_received), is added (Li et al. 2020,
    arXiv:1812.06127, eq. 2).

    Args:
        own: with the optimiser's state of the round before.

    Raises:
        StoppedError: `hooks.should_stop` returned True.
        TrainingError: too many steps in a row were not finite.
    """
    hooks = hooks or Hooks()
    state = _state(network, options, steps_done, own)
    steps: list[StepDone] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):  # a round has no validation of its own
            steps.append(event)
            hooks.on_event(event)

    num_steps = options.schedule.rounds * options.local.steps
    is_done = fit(
        state,
        stream,
        replace(options.fit, num_steps=num_steps, validate_every=num_steps),
        Hooks(on_event=hear, should_stop=hooks.should_stop, adjust=_pull(network, options.local.proximal)),
        options.augment,
        until=steps_done + options.local.steps,
    )
    if not is_done:
        raise StoppedError("the round was stopped at the site; it starts again when the site is back.")
    finite = [step.loss for step in steps if math.isfinite(step.loss)]
    return Learnt(
        loss=math.fsum(finite) / len(finite) if finite else math.nan,
        bad_steps=sum(bool(step.skipped) for step in steps),
        moments=moments_of(network, state.optimiser) if options.local.keep_optimiser else {},
        scaler=state.scaler.state_dict() if options.local.keep_optimiser else {},
    )


def _state(network: nn.Module, options: FederationOptions, steps_done: int, own: PersonalState | None) -> TrainState:
    device = next(network.parameters()).device
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimiser = kinds[options.local.optimiser](network.parameters(), lr=options.fit.learning_rate)
    scaler = torch.amp.GradScaler(device.type, enabled=precision(options.fit.amp, device) == torch.float16)
    if own is not None and options.local.keep_optimiser:
        take_moments(network, optimiser, own.moments)
        if own.scaler and scaler.is_enabled():
            scaler.load_state_dict(dict(own.scaler))
    return TrainState(network, optimiser, scaler, step=steps_done)


def _pull(network: nn.Module, strength: float) -> Callable[[nn.Module], None]:
    """A function that adds FedProx's gradient, towards the current weights."""
    if not strength:
        return lambda trained: None
    received = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    def add(trained: nn.Module) -> None:
        for name, parameter in trained.named_parameters():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - received[name], alpha=strength)

    return add


def derived(seed: int, *names: str | int) -> int:
    """A seed that differs for different names."""
    text = "\n".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random numbers in this block; afterwards they are as before."""
    cards = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(seed)
        yield


def personal_norms(network: nn.Module, patterns: Sequence[str]) -> list[_BatchNorm]:
    """The batch normalisation layers with running statistics that never leave a site."""
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and any(fnmatchcase(f"{name}.running_mean", pattern) for pattern in patterns)
    ]


def estimate_norms(network: nn.Module, layers: Sequence[_BatchNorm], batches: Iterable[Batch]) -> None:
    """Set the layers' running mean and variance to their averages over these batches; nothing else changes.

    For a site that has none of its own yet (as in FedUniBrain). The network runs in evaluation mode except for these
    layers, which normalise each batch by itself.
    """
    device = next(network.parameters()).device
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]  # type: ignore[union-attr]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
        layer.train()
    with torch.no_grad():
        for batch in batches:
            on_device = batch.to(device)
            network(on_device.images, on_device.present)
    for layer, (momentum, tracked) in zip(layers, before, strict=True):
        layer.momentum, layer.num_batches_tracked = momentum, tracked
