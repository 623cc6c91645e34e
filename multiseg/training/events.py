"""What a training tells of itself as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
