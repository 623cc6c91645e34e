"""Events that a training reports while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SHOWN_EVERY = 10
"""TensorBoard and trackers show every tenth step."""


@dataclass(frozen=True)
class StepDone:
    """One optimiser step.

    Attributes:
        waiting: share of the step's time that was spent waiting for data.
        skipped: the cases of a step with a non-finite loss or gradient, which changed nothing; otherwise "".
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
        score: chooses the best model, see `validate.score_of`; NaN without any case.
        dice: mean by database over the cases that have a structure, see `validate.mean_dice`; NaN if none has.
        num_false_alarms: structures that were predicted in a case that does not have them.
        num_absent: structures that a case does not have, over all cases.
        structures: mean Dice by "DATABASE/STRUCTURE".
        kinds: mean Dice over the databases of "lesion" and of "tissue", of those that any case has.
    """

    score: float
    dice: Mapping[str, float]
    num_false_alarms: int = 0
    num_absent: int = 0
    structures: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Validated:
    """A `Validation` at a step; `parts` is its Dice by database."""

    step: int
    score: float
    parts: Mapping[str, float]
    is_best: bool
    num_false_alarms: int = 0
    num_absent: int = 0
    structures: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Noted:
    """A notice to the user before the first step or when a run resumes.

    Attributes:
        code: DATA_CHANGED (the data changed, and the change was accepted), DATA_UNKNOWN (the run is older than
            data.json), STEPS_CHANGED (another number of steps, and so another schedule), LOSS_CHANGED (a stage
            joint of a version with other losses), LEARNT_BEFORE (the parent model learnt from validation or test
            cases), LEARNT_UNKNOWN (the parent does not say from what it learnt) or LEARNT_REMOVED (the model learnt, or
            may have learnt, from cases that were removed from the store).
        cases: all cases that it concerns, as "database/case"; the message names only the first.
    """

    step: int
    code: str
    message: str
    cases: tuple[str, ...] = ()


Event = StepDone | Validated | Noted


def scalars_of(event: Event) -> dict[str, float]:
    """The numbers of an event by their TensorBoard names; none for most steps."""
    if isinstance(event, Validated):
        alarms = {"validation/false_alarms": float(event.num_false_alarms)} if event.num_absent else {}
        parts = {f"validation/{name}": value for name, value in event.parts.items()}
        several = event.structures if len({name.partition("/")[2] for name in event.structures}) > 1 else {}
        structures = {f"validation_structures/{name}": value for name, value in several.items()}
        kinds = {f"validation_kinds/{kind}": value for kind, value in event.kinds.items() if len(event.kinds) > 1}
        return {"validation/score": event.score} | alarms | parts | kinds | structures
    if not isinstance(event, StepDone) or event.step % SHOWN_EVERY:
        return {}
    return {
        "train/loss": event.loss,
        "train/gradient_norm": event.gradient_norm,
        "train/learning_rate": event.learning_rate,
        "speed/patches_per_second": event.patches_per_second,
        "speed/waiting": event.waiting,
    } | {f"train/{name}": value for name, value in event.scalars.items()}
