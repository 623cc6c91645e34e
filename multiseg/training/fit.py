"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multiseg.errors import TrainingError, UsageError
from multiseg.loaders.batches import Batch, PatchStream
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
        max_bad_steps: steps in a row with a non-finite loss or gradient before training gives up.
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
    """One optimiser step; `waiting` is the share of its time spent waiting for data."""

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


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: for progress, validation, saving, and to ask whether to stop."""

    on_event: Callable[[Event], None] = lambda event: None
    validate: Callable[[], Mapping[str, float]] = dict
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
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return names[amp]


def fit(state: TrainState, stream: PatchStream, options: FitOptions, hooks: Hooks) -> bool:
    """Train from `state.step` to the last step. Whether it got there, or was asked to stop.

    A step with a non-finite loss or gradient changes nothing and is reported with its cases.

    Raises:
        TrainingError: `max_bad_steps` such steps in a row; the message names the cases.
        UsageError: an objective or schedule of unknown name.
    """
    for value, known in ((options.objective, OBJECTIVES), (options.schedule, SCHEDULES)):
        if value not in known:
            raise UsageError(f"{value!r} is none of {', '.join(known)}.")
    device = next(state.network.parameters()).device
    saved_at = time.monotonic()
    for batch, waited in _timed(stream.batches(state.step, options.num_steps)):
        began = time.monotonic()
        done = _step(state, batch.to(device), options)
        elapsed = time.monotonic() - began + waited
        hooks.on_event(_event(state, batch, done, elapsed, waited))
        if state.bad_steps >= options.max_bad_steps:
            raise TrainingError(
                f"{state.bad_steps} steps in a row had a loss or gradient that is not finite; the last "
                f"drew on {_cases(batch)}. Look at these cases, or lower the learning rate or turn amp off."
            )
        if state.step % options.validate_every == 0 or state.step == options.num_steps:
            _validate(state, hooks)
            saved_at = time.monotonic()
        elif hooks.should_stop() or time.monotonic() - saved_at > 60 * options.save_minutes:
            hooks.save(False)
            saved_at = time.monotonic()
        if hooks.should_stop():
            return state.step == options.num_steps
    return True


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
    if math.isfinite(norm) and bool(torch.isfinite(loss)):
        state.scaler.step(state.optimiser)
        state.bad_steps = 0
    else:
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


def _validate(state: TrainState, hooks: Hooks) -> None:
    parts = hooks.validate()
    finite = [value for value in parts.values() if math.isfinite(value)]
    score = sum(finite) / len(finite) if finite else math.nan
    is_best = bool(finite) and not score <= state.best
    state.best = score if is_best else state.best
    state.history.append({"step": state.step, "score": score, **parts})
    hooks.save(is_best)
    hooks.on_event(Validated(state.step, score, parts, is_best))
