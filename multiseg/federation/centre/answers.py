"""What sites tell in numbers and words, and whether it is to be understood."""

from __future__ import annotations

import math
from typing import Any

from multiseg.federation.messages import ROUND, Answer


def number_of(value: Any) -> float:
    """A number from JSON, in which null stands for what is undefined."""
    return math.nan if value is None else float(value)


def validation_of(answer: Answer) -> dict[str, float]:
    """Dice of the model that a round began with, as a site tells it, by database and perhaps subset."""
    return {str(name): number_of(value) for name, value in answer.body["metrics"].get("validation", {}).items()}


def dice_of(answer: Answer) -> dict[str, float]:
    """Dice of an evaluation, by database and perhaps subset."""
    return {str(name): number_of(told.get("dice")) for name, told in answer.body.get("metrics", {}).items()}


def why_unclear(answer: Answer) -> str:
    """Why what a site tells cannot be meant, "" where it can.

    Dice lie from 0 to 1 or are absent; counts, patches and seconds are 0 or more; a loss is finite or absent.
    """
    try:
        _check_events(answer)
        if answer.kind == ROUND:
            _check_round(answer)
        else:
            _check(dice_of(answer), 0.0, 1.0)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return f"what it tells of losses, Dice and counts is not to be understood: {error!r}"
    return ""


def _check_round(answer: Answer) -> None:
    body = answer.body
    loss, seconds = number_of(body["metrics"].get("loss")), body.get("seconds", {})
    _check(validation_of(answer), 0.0, 1.0)
    _check({"loss": loss}, -math.inf, math.inf)
    _check({"seconds": number_of(seconds.get("total"))}, 0.0, math.inf)
    exposure = {str(group): float(patches) for group, patches in body.get("exposure", {}).items()}
    counts = {name: float(int(body.get(name, 0))) for name in ("num_cases", "releases")}
    for told in (exposure, counts):
        _check(told, 0.0, math.inf)
        if any(math.isnan(value) for value in told.values()):
            raise ValueError(f"{told} is no count")


def _check(told: dict[str, float], least: float, most: float) -> None:
    """Raises ValueError for what is infinite or out of its range; NaN is what is absent."""
    for name, value in told.items():
        if math.isinf(value) or value < least or value > most:
            raise ValueError(f"{name} is {value}")


def _check_events(answer: Answer) -> None:
    events = answer.body.get("events", [])
    if not isinstance(events, list) or not all(isinstance(text, str) for text in events):
        raise TypeError("events are no list of texts")
