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
from multiseg.own import is_own
from multiseg.training.average import average_of, update_average
from multiseg.training.checkpoint import TrainState
from multiseg.training.consistency import Consistency
from multiseg.training.distributed import ALONE, Peers, without_sync
from multiseg.training.events import Event, StepDone, Validated, Validation
from multiseg.training.numerics import compiled, deterministic, precision
from multiseg.training.objectives import Objective, objective_named, refuse_consistency
from multiseg.training.optimisers import SCHEDULES


@dataclass(frozen=True)
class FitOptions:
    """How long and how to train.

    Attributes:
        num_steps: optimiser steps in all.
        learning_rate: of the optimiser at the start.
        objective: a name in `multiseg.training.objectives.OBJECTIVES`, such as "dice+bce" (Dice of each sample) or
            "ace", or your own as module:name.
        class_weights: of the classes in its cross entropy: "none" or "inverse-root", see `class_weights.py`.
        consistency: weight of a term that compares the answers to a patch with all its sequences and with fewer; 0 for
            none, see `consistency.py`. A run file that names joint_jaccard has 1 unless it says another.
        consistency_from: share of the steps after which the term begins.
        consistency_partner: what the second answer is given: a sequence's name, or "random" for a random part.
        stop_gradient: whether the answer with all sequences gets no gradient of the term.
        schedule: of the learning rate: "cosine" to 0, "published" (a tenth after a quarter of the steps, as 150 of
            600 epochs) or "constant".
        accumulate: batches per step; the loss is their mean, and memory is needed for only one of them.
        ema: decay of the moving average of the weights, which is then validated and saved as the model; 0 for none.
        amp: mixed precision on CUDA: "auto" (bf16 if the GPU supports it, else fp16), "bf16", "fp16", "off"; on a
            CPU only "bf16" has an effect.
        channels_last: keep the channels of a voxel together in memory, which is faster on many GPUs.
        compile: compile the network with torch, which takes minutes and may then be faster.
        deterministic: use deterministic operations where they exist; see numerics.py.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        validate_every: steps between validations.
        validation_cases: the most cases of each database that a validation takes.
        save_minutes: minutes between saves of the state to resume from.
        max_bad_steps: steps in a row with a non-finite loss or gradient before training gives up. Overflows
            with which fp16 finds its scale do not count.
    """

    num_steps: int = 25_000
    learning_rate: float = 1e-3
    objective: str = "dice+bce"
    class_weights: str = "none"
    consistency: float = 0.0
    consistency_from: float = 0.17
    consistency_partner: str = "T1"
    stop_gradient: bool = False
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
    """A source of batches, such as a PatchStream: batch n is the same in every call."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: for progress, validation, saving, and to ask whether to stop.

    `validate` returns its result, or None if it was stopped before it had one. `adjust` may change the unscaled
    gradients of the network before they are checked and clipped. `objective` and `transform` replace those that the
    options name.
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
    """Train from `state.step` to the last step and its validation; False if it was asked to stop before.

    A step takes `accumulate` batches, so step n begins at batch n * accumulate of the stream. A step with a
    non-finite loss or gradient changes nothing and is reported with its cases. A stop takes effect after the
    current step, or between two cases of a validation, which is then repeated first on resuming. Patches are
    augmented on the network's device; validation sees cases without augmentation. During the first
    `state.head_steps` only the network's head learns.

    Args:
        peers: the processes that train the same state, each with its share of the stream. They step, save, stop
            and fail together, and every hook is called in each of them.
        until: an earlier step to stop at, as a round of a federation does; the learning rate follows the schedule
            of all steps.

    Raises:
        TrainingError: `max_bad_steps` such steps in a row (the message names the cases), or compiling failed.
        UsageError: an objective or schedule is unknown, or a number is out of its range.
    """
    check_fit(options, hooks.objective)
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
        unfreeze_body = stack.enter_context(frozen_body(state.network, state.step < state.head_steps))
        augmentation = augmentation or AugmentOptions()
        augment = augmenter(augmentation, hooks.transform)
        term = consistency_of(options, augmentation.seed)
        objective = hooks.objective or objective_named(options.objective, consistency=term)
        learner = _Learner(state, options, objective, augment, peers, unfreeze_body)
        return _loop(learner, stream, hooks, options.num_steps if until is None else min(until, options.num_steps))


def consistency_of(options: FitOptions, seed: int | None) -> Consistency | None:
    """The consistency term of a training, if it has one.

    Args:
        seed: that of the augmentation, since the term's random parts are a change of the patch, too.
    """
    if not options.consistency:
        return None
    first_step = math.ceil(options.consistency_from * options.num_steps)
    return Consistency(options.consistency, first_step, options.consistency_partner, options.stop_gradient, seed or 0)


@contextmanager
def frozen_body(network: nn.Module, wanted: bool) -> Iterator[Callable[[], bool]]:
    """Freeze all parameters but those of `network.head`, until the end or until the function that it yields is called.

    That function returns whether it unfroze anything. Parameters that were frozen before, such as the first column of
    a progressive network, stay frozen. Dropout and the statistics of batch norm stay active in frozen layers.

    Raises:
        UsageError: the network has no head.
    """
    frozen = []
    if wanted:
        head = getattr(network, "head", None)
        if not isinstance(head, nn.Module):
            raise UsageError(f"{type(network).__name__} has no head to learn first: set head_steps to 0.")
        head_ids = {id(parameter) for parameter in head.parameters()}
        frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in head_ids]
    for parameter in frozen:
        parameter.requires_grad_(False)

    def unfreeze() -> bool:
        had_frozen = bool(frozen)
        for parameter in frozen:
            parameter.requires_grad_(True)
        frozen.clear()
        return had_frozen

    try:
        yield unfreeze
    finally:
        unfreeze()


class _Learner:
    """What a step needs; `network` is the state's network, wrapped for the peers."""

    def __init__(
        self,
        state: TrainState,
        options: FitOptions,
        objective: Objective,
        augment: Callable[[Batch], Batch],
        peers: Peers,
        unfreeze_body: Callable[[], bool],
    ) -> None:
        self.state, self.options, self.peers = state, options, peers
        self.objective, self.augment = objective, augment
        self.unfreeze_body = unfreeze_body
        self.device = next(state.network.parameters()).device
        self.dtype = precision(options.amp, self.device)
        self.network = peers.wrap(state.network)

    def unfreeze_body_if_due(self) -> None:
        if self.state.step >= self.state.head_steps and self.unfreeze_body():
            # Wrap again: DistributedDataParallel reads which parameters learn only once.
            self.network = self.peers.wrap(self.state.network)


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
                f"{state.bad_steps} steps in a row had a loss or gradient that is not finite; the last one "
                f"used {done.cases}. Check these cases, lower the learning rate, or turn amp off."
            )
        is_save_due = peers.is_first and time.monotonic() - saved_at > 60 * options.save_minutes
        num_stops, num_saves = peers.sums([float(hooks.should_stop()), float(is_save_due)])
        if num_stops:
            hooks.save(False)
            return False
        if _is_validation_due(state, options):
            if not _validate(state, hooks, peers):
                return False
            saved_at = time.monotonic()
        elif num_saves:
            hooks.save(False)
            saved_at = time.monotonic()
        learner.unfreeze_body_if_due()
    return True


def check_fit(options: FitOptions, objective: Objective | None = None) -> None:
    """Raises UsageError for an invalid setting. With `objective` the name in the options is not looked up."""
    if objective is None:
        objective_named(options.objective)
    if is_own(options.objective):
        refuse_consistency(options.objective, consistency_of(options, None))
    if not (math.isfinite(options.consistency) and options.consistency >= 0 and 0 <= options.consistency_from < 1):
        raise UsageError(
            f"fit.consistency is {options.consistency} and fit.consistency_from {options.consistency_from}: give a "
            "weight of 0 or more, and a share from 0 to below 1."
        )
    if options.schedule not in SCHEDULES:
        raise UsageError(f"fit.schedule is {options.schedule!r}: give one of {', '.join(SCHEDULES)}.")
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
    is_its_step = state.step % options.validate_every == 0 or state.step == options.num_steps
    is_done = bool(state.history) and state.history[-1]["step"] == state.step
    return state.step > 0 and is_its_step and not is_done


@dataclass(frozen=True)
class _Done:
    """A step; `cases` names those of all processes if the step is bad, and is "" otherwise."""

    loss: float
    scalars: Mapping[str, float]
    norm: float
    learning_rate: float
    num_patches: int
    seconds: float
    waited: float
    cases: str


def _step(learner: _Learner, batches: Iterator[Batch], hooks: Hooks) -> _Done:
    """Take the batches of one step from the stream, and update the weights once."""
    state, options = learner.state, learner.options
    started = time.monotonic()
    rate = options.learning_rate * SCHEDULES[options.schedule](state.step / options.num_steps)
    for param_group in state.optimiser.param_groups:
        param_group["lr"] = rate
    learner.network.train()
    state.optimiser.zero_grad(set_to_none=True)
    cases: dict[str, None] = {}
    sums: dict[str, Tensor] = {}
    num_patches, waited = 0, 0.0
    for number in range(1, options.accumulate + 1):
        wait_started = time.monotonic()
        batch = next(batches)  # only now: batches share memory, and taking the next one may overwrite the last
        waited += time.monotonic() - wait_started
        with without_sync(learner.network, quiet=number < options.accumulate):
            values = _backward(learner, batch)
        sums = {name: sums.get(name, 0) + value / options.accumulate for name, value in values.items()}
        cases |= dict.fromkeys(f"{database}/{case}" for database, case in zip(batch.database, batch.case, strict=True))
        num_patches += len(batch.case)
    loss, *scalars = [float(value) / learner.peers.num for value in sums.values()]
    loss, *scalars = learner.peers.sums([loss, *scalars])
    norm = _update(learner, loss, hooks)
    if state.bad_steps:
        cases = dict.fromkeys(chain.from_iterable(learner.peers.gather(list(cases))))
    return _Done(
        loss=loss,
        scalars=dict(zip(list(sums)[1:], scalars, strict=True)),
        norm=norm,
        learning_rate=rate,
        num_patches=num_patches,
        seconds=time.monotonic() - started,
        waited=waited,
        cases=", ".join(cases) if state.bad_steps else "",
    )


def _backward(learner: _Learner, batch: Batch) -> dict[str, Tensor]:
    """Add a batch's gradients, and return its loss, first, and the objective's scalars."""
    state, options, device = learner.state, learner.options, learner.device
    batch = learner.augment(batch.to(device))
    if options.channels_last:
        batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last_3d))
    with torch.autocast(device.type, dtype=learner.dtype, enabled=learner.dtype != torch.float32):
        loss, scalars = learner.objective(learner.network, batch, state.step)
    scaled: Tensor = state.scaler.scale(loss / options.accumulate)
    scaled.backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach(), **{name: value.detach() for name, value in scalars.items()}}


def _update(learner: _Learner, loss: float, hooks: Hooks) -> float:
    """Update the weights if loss and gradients are finite, and return the norm of the gradients."""
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
    elif not finite_loss or state.scaler.get_scale() <= 1:  # above 1 the cause may be the scale, not the data
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
    """Validate and save; False if it was stopped before it was done."""
    peers.align_buffers(state.model)
    result = hooks.validate()
    if result is None:
        hooks.save(False)
        return False
    is_best = math.isfinite(result.score) and not result.score <= state.best
    state.best = result.score if is_best else state.best
    alarms = {"false_alarms": float(result.num_false_alarms)} if result.num_absent else {}
    entry = {**result.dice, **result.structures, **alarms, "step": float(state.step), "score": result.score}
    state.history.append(entry)
    # Before saving: resuming removes log entries after the last save, but cannot add missing ones.
    counts = (result.num_false_alarms, result.num_absent)
    details = (*counts, result.structures, result.kinds)
    hooks.on_event(Validated(state.step, result.score, result.dice, is_best, *details))
    hooks.save(is_best)
    return True
