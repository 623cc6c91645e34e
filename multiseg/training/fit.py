"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from multiseg.errors import TrainingError, UsageError
from multiseg.loaders.augment import AugmentOptions, augment
from multiseg.loaders.batches import Batch
from multiseg.training.checkpoint import TrainState
from multiseg.training.objectives import OBJECTIVES


@dataclass(frozen=True)
class FitOptions:
    """How long and how to train.

    Attributes:
        objective: "dice+bce" or "dice" (as published).
        schedule: of the learning rate: "cosine" to 0, "published" (a tenth from a quarter of the steps
            on, as 150 of 600 epochs) or "constant".
        amp: mixed precision on CUDA: "auto" (bf16 where the card has it, else fp16), "bf16", "fp16", "off".
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
    amp: str = "auto"
    clip_norm: float = 12.0
    validate_every: int = 500
    validation_cases: int = 8
    save_minutes: float = 5.0
    max_bad_steps: int = 10


@dataclass(frozen=True)
class StepDone:
    """One optimiser step; `waiting` is the share of its time spent waiting for data.

    `skipped` names the cases of a step whose loss or gradient was not finite; such a step changed nothing.
    """

    step: int
    loss: float
    scalars: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    patches_per_second: float
    waiting: float
    skipped: str = ""


@dataclass(frozen=True)
class Validated:
    """Results on held-out cases: the score that chooses the best model, and named parts of it."""

    step: int
    score: float
    parts: Mapping[str, float]
    is_best: bool


Event = StepDone | Validated


@runtime_checkable
class Stream(Protocol):
    """Where batches come from, such as a PatchStream: batch n is the same whenever it is asked for."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: for progress, validation, saving, and to ask whether to stop.

    `validate` returns scores by name, or None where it was asked to stop before it had them.
    """

    on_event: Callable[[Event], None] = lambda event: None
    validate: Callable[[], Mapping[str, float] | None] = dict
    save: Callable[[bool], None] = lambda is_best: None
    should_stop: Callable[[], bool] = lambda: False


def _published(done: float) -> float:
    return 1.0 if done < 0.25 else 0.1


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "published": _published,
    "constant": lambda done: 1.0,
}
"""The factor on the learning rate, from the share of the steps that is done."""


def precision(amp: str, device: torch.device) -> torch.dtype:
    """The type that the forward pass computes in; float32 off CUDA.

    Raises:
        UsageError: the name is unknown.
    """
    names = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if amp not in (*names, "auto"):
        raise UsageError(f"amp {amp!r} is none of auto, {', '.join(names)}.")
    if device.type != "cuda":
        return torch.float32
    if amp == "auto":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return names[amp]


def fit(
    state: TrainState,
    stream: Stream,
    options: FitOptions,
    hooks: Hooks,
    augmentation: AugmentOptions | None = None,
) -> bool:
    """Train from `state.step` to the last step and its validation. Whether it got there, or was asked to stop.

    A step with a non-finite loss or gradient changes nothing and is reported with its cases. A stop takes
    effect after the step in hand, or between two cases of a validation, which is then made first on resuming.
    Patches are augmented on the network's device; validation sees cases as they are.

    Raises:
        TrainingError: `max_bad_steps` such steps in a row; the message names the cases.
        UsageError: an objective or schedule of unknown name, or a number out of its range.
    """
    _check(options)
    augmentation = augmentation or AugmentOptions()
    device = next(state.network.parameters()).device
    saved_at = time.monotonic()
    if _is_validation_due(state, options) and not _validate(state, hooks):
        return False
    for batch, waited in _timed(stream.batches(state.step, options.num_steps)):
        began = time.monotonic()
        done = _step(state, augment(batch.to(device), augmentation), options)
        elapsed = time.monotonic() - began + waited
        hooks.on_event(_event(state, batch, done, elapsed, waited))
        if state.bad_steps >= options.max_bad_steps:
            raise TrainingError(
                f"{state.bad_steps} steps in a row had a loss or gradient that is not finite; the last "
                f"drew on {_cases(batch)}. Look at these cases, or lower the learning rate or turn amp off."
            )
        if hooks.should_stop():
            hooks.save(False)
            return False
        if _is_validation_due(state, options):
            if not _validate(state, hooks):
                return False
            saved_at = time.monotonic()
        elif time.monotonic() - saved_at > 60 * options.save_minutes:
            hooks.save(False)
            saved_at = time.monotonic()
    return True


def _check(options: FitOptions) -> None:
    for value, known in ((options.objective, OBJECTIVES), (options.schedule, SCHEDULES)):
        if value not in known:
            raise UsageError(f"{value!r} is none of {', '.join(known)}.")
    for name in ("num_steps", "validate_every", "max_bad_steps"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} is {getattr(options, name)}: give at least 1.")
    if not options.learning_rate > 0:
        raise UsageError(f"the learning_rate is {options.learning_rate}: give a number above 0.")


def _is_validation_due(state: TrainState, options: FitOptions) -> bool:
    at_its_step = state.step % options.validate_every == 0 or state.step == options.num_steps
    is_done = bool(state.history) and state.history[-1]["step"] == state.step
    return state.step > 0 and at_its_step and not is_done


def _timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    asked = time.monotonic()
    for batch in batches:
        yield batch, time.monotonic() - asked
        asked = time.monotonic()


@dataclass(frozen=True)
class _Done:
    loss: float
    scalars: Mapping[str, float]
    norm: float
    learning_rate: float


def _step(state: TrainState, batch: Batch, options: FitOptions) -> _Done:
    rate = options.learning_rate * SCHEDULES[options.schedule](state.step / options.num_steps)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.network.train()
    state.optimiser.zero_grad(set_to_none=True)
    dtype = precision(options.amp, batch.images.device)
    with torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        loss, scalars = OBJECTIVES[options.objective](state.network, batch, state.step)
    scaled: Tensor = state.scaler.scale(loss)
    scaled.backward()  # type: ignore[no-untyped-call]
    state.scaler.unscale_(state.optimiser)
    parameters = [p for p in state.network.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm or math.inf))
    finite_loss = bool(torch.isfinite(loss))
    if finite_loss and math.isfinite(norm):
        state.scaler.step(state.optimiser)
        state.bad_steps = 0
    elif not finite_loss or state.scaler.get_scale() <= 1:  # above 1 the scale, and not the data, may be at fault
        state.bad_steps += 1
    state.scaler.update()
    state.step += 1
    return _Done(float(loss.detach()), {name: float(value) for name, value in scalars.items()}, norm, rate)


def _event(state: TrainState, batch: Batch, done: _Done, elapsed: float, waited: float) -> StepDone:
    return StepDone(
        step=state.step,
        loss=done.loss,
        scalars=done.scalars,
        gradient_norm=done.norm,
        learning_rate=done.learning_rate,
        patches_per_second=len(batch.case) / elapsed,
        waiting=waited / elapsed,
        skipped=_cases(batch) if state.bad_steps else "",
    )


def _cases(batch: Batch) -> str:
    names = [f"{database}/{case}" for database, case in zip(batch.database, batch.case, strict=True)]
    return ", ".join(dict.fromkeys(names))


def _validate(state: TrainState, hooks: Hooks) -> bool:
    """Validate and save; whether it was not asked to stop before it was done."""
    parts = hooks.validate()
    if parts is None:
        hooks.save(False)
        return False
    finite = [value for value in parts.values() if math.isfinite(value)]
    score = sum(finite) / len(finite) if finite else math.nan
    is_best = bool(finite) and not score <= state.best
    state.best = score if is_best else state.best
    state.history.append({**parts, "step": float(state.step), "score": score})
    # Before saving: what is logged beyond the last save is cut off on resuming, what is not logged stays missing.
    hooks.on_event(Validated(state.step, score, parts, is_best))
    hooks.save(is_best)
    return True
