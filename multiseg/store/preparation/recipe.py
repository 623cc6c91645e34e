"""How every case of a database is prepared: chosen once, stored with the data and with every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from multiseg.errors import UsageError

DISAGREE = ("refuse", "world", "array")
BRAIN_RULES = ("file", "nonzero", "otsu")
COMMAND = "command "
NORMALISE = ("zscore", "histogram", "none")
REGISTER = ("", "rigid")
PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
"""Of the brain's intensities: the landmarks of `normalise="histogram"`."""


@dataclass(frozen=True)
class Recipe:
    """How every case of a database is prepared. Stored with the data and with every model.

    Attributes:
        spacing_mm: voxel size of the store along i, j, k.
        reference: the sequence whose box becomes the case's grid; "" takes the one that the first
            annotation was drawn on, else the first in canonical order.
        brain_mask: "file" (given with each case), "nonzero" (each sequence's own non-zero voxels), "otsu"
            (what is brighter than air in the reference: the head, where its skull is there), or "command "
            and a program to run on the reference, such as "command hd-bet -i {image} -o {mask}".
        headers_disagree: for files of one shape that their headers put in different places: "refuse", trust
            the "world" (headers), or trust the "array" (same voxels); `space.believed` has the rule.
        normalise: "zscore" inside the brain; "histogram" (`landmarks`, then z-score); or "none".
        register: "rigid" moves every sequence onto the reference; "" trusts the headers.
        n4: whether the bias field is taken out inside the brain.
        landmarks: for "histogram", each sequence's `PERCENTILES` on the standard scale.

    Raises:
        UsageError: a choice is none of these, or the command names no {image} or {mask}.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reference: str = ""
    brain_mask: str = "nonzero"
    headers_disagree: str = "refuse"
    normalise: str = "zscore"
    register: str = ""
    n4: bool = False
    landmarks: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        choices = {"headers_disagree": DISAGREE, "normalise": NORMALISE, "register": REGISTER}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                said = ", ".join(choice or '""' for choice in allowed)
                raise UsageError(f"{name} {getattr(self, name)!r} is none of {said}.")
        check_brain_rule(self.brain_mask)

    def to_json(self) -> dict[str, Any]:
        """As stored. What to believe when headers disagree is decided case by case, so it is not part of it.

        Steps that are not taken are left out, so that a store made before they existed agrees.
        """
        kept = {key: value for key, value in asdict(self).items() if key != "headers_disagree"}
        taken = {key: value for key, value in kept.items() if value or key not in ("register", "n4", "landmarks")}
        if self.landmarks:
            taken["landmarks"] = {name: list(scale) for name, scale in sorted(self.landmarks.items())}
        return taken | {"spacing_mm": list(self.spacing_mm)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        i, j, k = data["spacing_mm"]
        landmarks = {name: tuple(map(float, scale)) for name, scale in data.get("landmarks", {}).items()}
        return cls(**{**data, "spacing_mm": (float(i), float(j), float(k)), "landmarks": landmarks})


def check_brain_rule(rule: str) -> None:
    """Whether a text says where the brain is.

    Raises:
        UsageError: it does not.
    """
    if rule.startswith(COMMAND):
        missing = [field for field in ("{image}", "{mask}") if field not in rule]
        if missing:
            raise UsageError(
                f"the brain mask's {rule!r} does not say where {' and '.join(missing)} goes. Write it such as "
                '"command hd-bet -i {image} -o {mask}".'
            )
    elif rule not in BRAIN_RULES:
        raise UsageError(f'brain_mask {rule!r} is none of {", ".join(BRAIN_RULES)} or "command PROGRAM ...".')
