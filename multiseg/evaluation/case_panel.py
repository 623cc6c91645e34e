"""What a picture shows of one case; drawing it (`montage`) needs matplotlib, which is slow to import."""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from multiseg.types import Codes, Mask

Image: TypeAlias = Float[np.ndarray, "i j k"]

PNG = (".png",)


@dataclass(frozen=True, eq=False)
class Parcels:
    """A label volume of many structures: code n + 1 is `names[n]`, 0 is background."""

    codes: Codes
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CasePanel:
    """One row of a montage: the sequences of a case on one RAS+ grid.

    Attributes:
        caption: lines below the name: the pathology, the Dice.
        parcels: each gets a column, which shows its structures in colour over the first sequence.
        values: a text for each structure, such as its Dice, below the caption in the structure's colour.
    """

    name: str
    caption: str
    images: dict[str, Image]
    truth: Mask | None
    predicted: Mask | None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    parcels: dict[str, Parcels] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
