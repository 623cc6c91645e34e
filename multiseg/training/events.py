"""What a training tells of itself as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SHOWN_EVERY = 10
"""Boards show every tenth step."""


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
class Validation:
    """Results on held-out cases.

    Attributes:
        score: what chooses the best model, see `validate.score_of`; NaN where there was nothing to judge.
        dice: mean by database over the cases that have a structure; NaN where none has.
        num_false_alarms: structures that a case does not have and that were predicted in it.
        num_absent: structures that a case does not have, over all cases.
    """

    score: float
    dice: Mapping[str, float]
    num_false_alarms: int = 0
    num_absent: int = 0


@dataclass(frozen=True)
class Validated:
    """A validation, as `Validation` has it; `parts` is its Dice by database."""

    step: int
    score: float
    parts: Mapping[str, float]
    is_best: bool
    num_false_alarms: int = 0
    num_absent: int = 0


@dataclass(frozen=True)
class Noted:
    """What a person should know of a training, said before its first step or when it resumes.

    Attributes:
        code: DATA_CHANGED (the data did, and the change was accepted), DATA_UNKNOWN (started before that was written
            down), STEPS_CHANGED (another number of steps, and so another schedule), LEARNT_BEFORE (the model that was
            started from has learnt from validation or test cases), LEARNT_UNKNOWN (it does not say) or LEARNT_REMOVED
            (it has, or may have, learnt from cases that were removed from the store).
        cases: all that it concerns, as "database/case"; the message names only the first.
    """

    step: int
    code: str
    message: str
    cases: tuple[str, ...] = ()


Event = StepDone | Validated | Noted


def scalars_of(event: Event) -> dict[str, float]:
    """The numbers of an event by their names on a board; none for most steps."""
    if isinstance(event, Validated):
        alarms = {"validation/false_alarms": float(event.num_false_alarms)} if event.num_absent else {}
        parts = {f"validation/{name}": value for name, value in event.parts.items()}
        return {"validation/score": event.score} | alarms | parts
    if not isinstance(event, StepDone) or event.step % SHOWN_EVERY:
        return {}
    return {
        "train/loss": event.loss,
        "train/gradient_norm": event.gradient_norm,
        "train/learning_rate": event.learning_rate,
        "speed/patches_per_second": event.patches_per_second,
        "speed/waiting": event.waiting,
    } | {f"train/{name}": value for name, value in event.scalars.items()}
