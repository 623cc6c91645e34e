"""How far a model's probabilities are to be trusted, as its file says: what `multiseg calibrate` found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from multiseg.errors import DataError

LOOK_BELOW = 0.5
"""Of a model that is not calibrated: a structure whose expected Dice is below it should be looked at."""


class Temperatures(NamedTuple):
    """By which logits are divided where the answer is a structure (inside), and where it is not (outside)."""

    outside: float
    inside: float


UNCALIBRATED = Temperatures(1.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Temperatures by the number of sequences that the model is given, and when a person should look at its answer.

    Attributes:
        temperatures: above 1 where the model was too sure of itself. At least one.
        look_below: by structure, the expected Dice below which a case is flagged.
        poor_dice: the true Dice below which an answer counted as poor when `look_below` was chosen.
        cases: the validation cases that it was fitted on, by database.
        learnt: "val" if the model was chosen by some of these cases, "not known" if its file does not say whether it
            was trained on them, else "".
        key: identifies the fit: weights, cases and options; "" in a model that was handed on.

    Raises:
        DataError: there is no temperature, or one is not a positive number.
    """

    temperatures: Mapping[int, Temperatures]
    look_below: Mapping[str, float]
    poor_dice: float
    cases: Mapping[str, int]
    learnt: str
    key: str

    def __post_init__(self) -> None:
        values = [value for both in self.temperatures.values() for value in both]
        if not values or not all(math.isfinite(value) and value > 0 for value in values):
            raise DataError(f"the temperatures of a calibration are {dict(self.temperatures)}: all must be above 0.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"temperatures": {str(num): both._asdict() for num, both in self.temperatures.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        temperatures = {int(num): Temperatures(**both) for num, both in data["temperatures"].items()}
        return cls(**{**data, "temperatures": dict(sorted(temperatures.items()))})


def temperatures_of(calibration: Calibration | None, num_sequences: int) -> Temperatures:
    """The temperatures for so many sequences; 1 without a calibration.

    If none were fitted for this number: those of the next smaller number, or else of the smallest.
    """
    if calibration is None:
        return UNCALIBRATED
    fitted = calibration.temperatures
    return fitted[max((num for num in fitted if num <= num_sequences), default=min(fitted))]


def look_below_of(calibration: Calibration | None, structure: str) -> float:
    """The expected Dice below which the structure should be looked at."""
    return LOOK_BELOW if calibration is None else calibration.look_below.get(structure, LOOK_BELOW)
