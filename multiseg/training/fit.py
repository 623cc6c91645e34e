"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from multiseg.errors import TrainingError, UsageError
from multiseg.loaders.augment import AugmentOptions, augmenter
from multiseg.loaders.batches import Batch
from multiseg.loaders.transform import Transform
from multiseg.training.average import average_of, update_average
from multiseg.training.checkpoint import TrainState
from multiseg.training.distributed import ALONE, Peers, without_sync
from multiseg.training.events import Event, StepDone, Validated, Validation
from multiseg.training.numerics import compiled, deterministic, precision
from multiseg.training.objectives import Objective, objective_named
from multiseg.training.optimisers import SCHEDULES


@dataclass(frozen=True)
class FitOptions:
    """How long and how to train.

    Attributes:
        objective: "dice+bce" (Dice of each sample), "batch_dice+bce" (over the batch), "dice" (as published), or your
            own as module:name.
        schedule: of the learning rate: "cosine" to 0, "published" (a tenth from a quarter of the steps
            on, as 150 of 600 epochs) or "constant".
        accumulate: batches a step; the loss is their mean, and one after the other they need the memory of one.
        ema: decay of the moving average of the weights that is then validated and saved as the model; 0 keeps none.
        amp: mixed precision on CUDA: "auto" (bf16 where the card has it, else fp16), "bf16", "fp16", "off"; on a
            CPU only "bf16" says something.
        channels_last: keep the channels of a voxel together in memory, which many cards prefer.
        compile: have torch compile the network, which takes minutes and then may be faster.
        deterministic: use only operations that give the same bits every time, as far as there are any; see numerics.py.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        validate_every: steps between validations.
        save_minutes: minutes between saves of the state to resume from.
        max_bad_steps: steps in a row with a non-finite loss or gradient before training gives up. Overflows
            by which fp16 finds its scale are not counted.
    """

    num_steps: int = 25_000
    learning_rate: float = 1e-3
    objective: str = "dice+bce"
    schedule: str = "cosine"
    accumulate: int = 1
    ema: float = 0.0
    amp: str = "auto"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    clip_norm: float = 12.0
    validate_every: int = 500
    validation_cases: int = 8
    save_minutes: float = 5.0
    max_bad_steps: int = 10


@runtime_checkable
class Stream(Protocol):
    """Where batches come from, such as a PatchStream: batch n is the same whenever it is asked for."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: for progress, validation, saving, and to ask whether to stop.

    `validate` returns what it found, or None where it was asked to stop before it had that. `adjust` may change the
    gradients of the network, unscaled, before they are looked at and clipped. `objective` and `transform` take the
    place of those that the options name.
    """

    on_event: Callable[[Event], None] = lambda event: None
    validate: Callable[[], Validation | None] = lambda: Validation(math.nan, {})
    save: Callable[[bool], None] = lambda is_best: None
    should_stop: Callable[[], bool] = lambda: False
    adjust: Callable[[nn.Module], None] = lambda network: None
    objective: Objective | None = None
    transform: Transform | None = None


def fit(
    state: TrainState,
    stream: Stream,
    options: FitOptions,
    hooks: Hooks,
    augmentation: AugmentOptions | None = None,
    peers: Peers = ALONE,
    until: int | None = None,
) -> bool:
    """Train from `state.step` to the last step and its validation. Whether it got there, or was asked to stop.

    A step takes `accumulate` batches, so step n begins at batch n * accumulate of the stream. A step with a
    non-finite loss or gradient changes nothing and is reported with its cases. A stop takes effect after the
    step in hand, or between two cases of a validation, which is then made first on resuming. Patches are
    augmented on the network's device; validation sees cases as they are. During the first `state.head_steps`
    only the network's head learns.

    Args:
        peers: the processes that train the same state, each with its own share of the stream. They step, save,
            stop and fail together, and every hook is called in each of them.
        until: the step to stop at before the last, if any, as a round of a federation does; the schedule of the
            learning rate is that of all steps.

    Raises:
        TrainingError: `max_bad_steps` such steps in a row, the message names the cases; or no compiling.
        UsageError: an objective or schedule of unknown name, or a number out of its range.
    """
    check(options, hooks.objective)
    device = next(state.network.parameters()).device
    precision(options.amp, device)
    if options.channels_last:
        state.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if not options.ema:
        state.average = None
    elif state.average is None:
        state.average = average_of(state.network)
    with ExitStack() as stack:
        stack.enter_context(deterministic(options.deterministic, device))
        stack.enter_context(compiled(state.network, options.compile))
        free_body = stack.enter_context(head_alone(state.network, state.step < state.head_steps))
        augmented = augmenter(augmentation or AugmentOptions(), hooks.transform)
        learner = _Learner(
            state, options, hooks.objective or objective_named(options.objective), augmented, peers, free_body
        )
        return _loop(learner, stream, hooks, options.num_steps if until is None else min(until, options.num_steps))


@contextmanager
def head_alone(network: nn.Module, wanted: bool) -> Iterator[Callable[[], bool]]:
    """Freeze all parameters but those of `network.head`, until the function that this gives is called, or the end.

    The function says whether it had anything to let go. What was frozen before, such as the first column of a
    progressive network, stays so. Dropout goes on in the frozen layers, and so do the statistics of batch norm.

    Raises:
        UsageError: the network has no head.
    """
    head = getattr(network, "head", None)
    if wanted and not isinstance(head, nn.Module):
        raise UsageError(f"{type(network).__name__} has no head to learn first: set head_steps to 0.")
    own = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
    frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in own] if wanted else []
    for parameter in frozen:
        parameter.requires_grad_(False)

    def let_go() -> bool:
        had = bool(frozen)
        for parameter in frozen:
            parameter.requires_grad_(True)
        frozen.clear()
        return had

    try:
        yield let_go
    finally:
        let_go()


class _Learner:
    """What a step needs; `network` is the state's as it has to be called."""

    def __init__(
        self,
        state: TrainState,
        options: FitOptions,
        objective: Objective,
        augmented: Callable[[Batch], Batch],
        peers: Peers,
        free_body: Callable[[], bool],
    ) -> None:
        self.state, self.options, self.peers = state, options, peers
        self.objective, self.augmented = objective, augmented
        self.free_body = free_body
        self.device = next(state.network.parameters()).device
        self.dtype = precision(options.amp, self.device)
        self.network = peers.wrap(state.network)

    def free_body_if_due(self) -> None:
        if self.state.step >= self.state.head_steps and self.free_body():
            self.network = self.peers.wrap(self.state.network)  # anew: it looks at what learns only once


def _loop(learner: _Learner, stream: Stream, hooks: Hooks, until: int) -> bool:
    state, options, peers = learner.state, learner.options, learner.peers
    saved_at = time.monotonic()
    if _is_validation_due(state, options) and not _validate(state, hooks, peers):
        return False
    batches = stream.batches(state.step * options.accumulate, until * options.accumulate)
    while state.step < until:
        done = _step(learner, batches, hooks)
        hooks.on_event(_event(state, done, peers.num))
        if state.bad_steps >= options.max_bad_steps:
            raise TrainingError(
                f"{state.bad_steps} steps in a row had a loss or gradient that is not finite; the last "
                f"drew on {done.cases}. Look at these cases, or lower the learning rate or turn amp off."
            )
        is_time = peers.is_first and time.monotonic() - saved_at > 60 * options.save_minutes
        stops, saves = peers.sums([float(hooks.should_stop()), float(is_time)])
        if stops:
            hooks.save(False)
            return False
        if _is_validation_due(state, options):
            if not _validate(state, hooks, peers):
                return False
            saved_at = time.monotonic()
        elif saves:
            hooks.save(False)
            saved_at = time.monotonic()
        learner.free_body_if_due()
    return True


def check(options: FitOptions, objective: Objective | None = None) -> None:
    """Raises UsageError for an invalid setting; the name of an objective that is given is not looked up."""
    if objective is None:
        objective_named(options.objective)
    if options.schedule not in SCHEDULES:
        raise UsageError(f"{options.schedule!r} is none of {', '.join(SCHEDULES)}.")
    for name in ("num_steps", "validate_every", "max_bad_steps", "accumulate"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} is {getattr(options, name)}: give at least 1.")
    if not options.learning_rate > 0:
        raise UsageError(f"the learning_rate is {options.learning_rate}: give a number above 0.")
    if not (options.clip_norm >= 0 and options.save_minutes >= 0):
        raise UsageError(
            f"clip_norm is {options.clip_norm} and save_minutes {options.save_minutes}: give 0 or more; a clip_norm of "
            "0 leaves gradients as they are."
        )
    if not 0 <= options.ema < 1:
        raise UsageError(f"ema is {options.ema}: give a decay from 0 (no average) to below 1, such as 0.999.")


def _is_validation_due(state: TrainState, options: FitOptions) -> bool:
    at_its_step = state.step % options.validate_every == 0 or state.step == options.num_steps
    is_done = bool(state.history) and state.history[-1]["step"] == state.step
    return state.step > 0 and at_its_step and not is_done


@dataclass(frozen=True)
class _Done:
    """A step; `cases` are named only where it is bad, then of all processes."""

    loss: float
    scalars: Mapping[str, float]
    norm: float
    learning_rate: float
    num_patches: int
    seconds: float
    waited: float
    cases: str


def _step(learner: _Learner, batches: Iterator[Batch], hooks: Hooks) -> _Done:
    """Take the batches of one step from the stream, and change the weights once."""
    state, options = learner.state, learner.options
    began = time.monotonic()
    rate = options.learning_rate * SCHEDULES[options.schedule](state.step / options.num_steps)
    for param_group in state.optimiser.param_groups:
        param_group["lr"] = rate
    learner.network.train()
    state.optimiser.zero_grad(set_to_none=True)
    cases: dict[str, None] = {}
    sums: dict[str, Tensor] = {}
    num_patches, waited = 0, 0.0
    for number in range(1, options.accumulate + 1):
        asked = time.monotonic()
        batch = next(batches)  # one after the other: batches share memory, so the next one may overwrite this one
        waited += time.monotonic() - asked
        with without_sync(learner.network, quiet=number < options.accumulate):
            found = _backward(learner, batch)
        sums = {name: sums.get(name, 0) + value / options.accumulate for name, value in found.items()}
        cases |= dict.fromkeys(f"{database}/{case}" for database, case in zip(batch.database, batch.case, strict=True))
        num_patches += len(batch.case)
    loss, *scalars = [float(value) / learner.peers.num for value in sums.values()]
    loss, *scalars = learner.peers.sums([loss, *scalars])
    norm = _update(learner, loss, hooks)
    named = ", ".join(dict.fromkeys(chain.from_iterable(learner.peers.gather(list(cases))))) if state.bad_steps else ""
    return _Done(
        loss=loss,
        scalars=dict(zip(list(sums)[1:], scalars, strict=True)),
        norm=norm,
        learning_rate=rate,
        num_patches=num_patches,
        seconds=time.monotonic() - began,
        waited=waited,
        cases=named,
    )


def _backward(learner: _Learner, batch: Batch) -> dict[str, Tensor]:
    """Add a batch's part to the gradients; its loss, first, and the objective's scalars."""
    state, options, device = learner.state, learner.options, learner.device
    batch = learner.augmented(batch.to(device))
    if options.channels_last:
        batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last_3d))
    with torch.autocast(device.type, dtype=learner.dtype, enabled=learner.dtype != torch.float32):
        loss, scalars = learner.objective(learner.network, batch, state.step)
    scaled: Tensor = state.scaler.scale(loss / options.accumulate)
    scaled.backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach(), **{name: value.detach() for name, value in scalars.items()}}


def _update(learner: _Learner, loss: float, hooks: Hooks) -> float:
    """Change the weights by the gradients, unless these or the loss are not finite; the gradients' norm."""
    state, options = learner.state, learner.options
    state.scaler.unscale_(state.optimiser)
    hooks.adjust(state.network)
    parameters = [p for p in state.network.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm or math.inf))
    finite_loss = math.isfinite(loss)
    if finite_loss and math.isfinite(norm):
        state.scaler.step(state.optimiser)
        state.bad_steps = 0
        if state.average is not None:
            update_average(state.average, state.network, options.ema, state.step)
    elif not finite_loss or state.scaler.get_scale() <= 1:  # above 1 the scale, and not the data, may be at fault
        state.bad_steps += 1
    state.scaler.update()
    state.step += 1
    return norm


def _event(state: TrainState, done: _Done, num_processes: int) -> StepDone:
    return StepDone(
        step=state.step,
        loss=done.loss,
        scalars=done.scalars,
        gradient_norm=done.norm,
        learning_rate=done.learning_rate,
        patches_per_second=num_processes * done.num_patches / done.seconds,
        waiting=done.waited / done.seconds,
        skipped=done.cases,
    )


def _validate(state: TrainState, hooks: Hooks, peers: Peers) -> bool:
    """Validate and save; whether it was not asked to stop before it was done."""
    peers.align_buffers(state.model)
    found = hooks.validate()
    if found is None:
        hooks.save(False)
        return False
    is_best = math.isfinite(found.score) and not found.score <= state.best
    state.best = found.score if is_best else state.best
    alarms = {"false_alarms": float(found.num_false_alarms)} if found.num_absent else {}
    state.history.append({**found.dice, **alarms, "step": float(state.step), "score": found.score})
    # Before saving: what is logged beyond the last save is cut off on resuming, what is not logged stays missing.
    numbers = (found.num_false_alarms, found.num_absent)
    hooks.on_event(Validated(state.step, found.score, found.dice, is_best, *numbers))
    hooks.save(is_best)
    return True
