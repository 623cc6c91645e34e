"""The scores that answers hold; see `reading` for what an answer may say."""

from __future__ import annotations

import math
from typing import Any

from multiseg.federation.messages import Answer


def number_of(value: Any) -> float:
    """A number from JSON, in which null stands for what is undefined."""
    return math.nan if value is None else float(value)


def validation_of(answer: Answer) -> dict[str, float]:
    """Dice of the model that a round began with, as a site tells it, by database and perhaps subset."""
    return {str(name): number_of(value) for name, value in answer.body["metrics"].get("validation", {}).items()}


def dice_of(answer: Answer) -> dict[str, float]:
    """Dice of an evaluation, by database and perhaps subset."""
    return {str(name): number_of(told.get("dice")) for name, told in answer.body.get("metrics", {}).items()}
