"""What a case scores where the truth or the prediction is empty: policies by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["both", "missed", "false alarm", "clean"]


@dataclass(frozen=True)
class Scores:
    """The scores of a case with an empty mask.

    Attributes:
        overlap: of Dice, surface Dice and sensitivity, and of the Dice and F1 of its lesions.
        precision: of the precision.
        diagonals: of the distances, in diagonals of the grid.
    """

    overlap: float
    precision: float
    diagonals: float


@dataclass(frozen=True)
class EmptyPolicy:
    """What empty masks score.

    Attributes:
        missed, false_alarm, clean: the scores by outcome.
        text: what it says, for tables.
    """

    missed: Scores
    false_alarm: Scores
    clean: Scores
    text: str

    def scores(self, outcome: Outcome) -> Scores:
        """The scores of an outcome other than "both"."""
        return {"missed": self.missed, "false alarm": self.false_alarm, "clean": self.clean}[outcome]


UNDEFINED = EmptyPolicy(
    missed=Scores(0.0, 0.0, 1.0),
    false_alarm=Scores(math.nan, 0.0, math.nan),
    clean=Scores(math.nan, math.nan, math.nan),
    text="A case without lesion has no Dice, sensitivity or distance and is left out of their means, but counted; "
    "a false alarm there has precision, lesion F1 and lesion Dice 0. A missed lesion, where nothing was predicted, has "
    "Dice, sensitivity and precision 0, and the diagonal of the grid as distance: missing never improves a mean.",
)
BRATS = EmptyPolicy(
    missed=UNDEFINED.missed,
    false_alarm=Scores(0.0, 0.0, 1.0),
    clean=Scores(1.0, 1.0, 0.0),
    text="As in the BraTS challenges, a case without lesion where nothing was predicted has Dice, sensitivity and "
    "precision 1 and distance 0. A false alarm there, and a missed lesion, have 0, and the diagonal of the case's grid "
    "as distance.",
)
EMPTY = {"undefined": UNDEFINED, "brats": BRATS}
