"""Settings of the preparation: chosen once for a database, stored with its data and with every model."""

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
"""The percentiles of a brain's intensities that are the landmarks of `normalise="histogram"`."""


@dataclass(frozen=True)
class Recipe:
    """How every case of a database is prepared. Stored with the data and with every model.

    Attributes:
        spacing_mm: voxel size of the store along i, j, k.
        reference: the sequence that gives the case's grid; "" for the one that the first annotation was drawn on, or
            else the first in canonical order.
        brain_mask: "file" (given with each case), "nonzero" (the non-zero voxels of each sequence), "otsu" (what is
            brighter than air in the reference, including a skull that was not removed), or "command " and a program
            to run on the reference, such as "command hd-bet -i {image} -o {mask}".
        headers_disagree: for files of the same shape whose headers give different positions: "refuse", trust the
            "world" (the headers), or trust the "array" (the same voxels); see `space.header_corrections`.
        normalise: "zscore" inside the brain; "histogram" (`landmarks`, then z-score); or "none".
        register: "rigid" registers every sequence to the reference; "" trusts the headers.
        n4: whether the bias field in the brain is removed.
        landmarks: for "histogram", each sequence's `PERCENTILES` on the standard scale.

    Raises:
        UsageError: a choice is unknown, or the command lacks {image} or {mask}.
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
                listed = ", ".join(choice or '""' for choice in allowed)
                raise UsageError(f"unknown {name} {getattr(self, name)!r}: choose one of {listed}.")
        check_brain_rule(self.brain_mask)

    def to_json(self) -> dict[str, Any]:
        """The recipe as stored, without `headers_disagree`, which applies to single cases.

        Steps that are not taken are left out, so that stores from before they existed have the same recipe.
        """
        stored = {key: value for key, value in asdict(self).items() if key != "headers_disagree"}
        stored = {key: value for key, value in stored.items() if value or key not in ("register", "n4", "landmarks")}
        if self.landmarks:
            stored["landmarks"] = {name: list(scale) for name, scale in sorted(self.landmarks.items())}
        return stored | {"spacing_mm": list(self.spacing_mm)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        i, j, k = data["spacing_mm"]
        landmarks = {name: tuple(map(float, scale)) for name, scale in data.get("landmarks", {}).items()}
        return cls(**{**data, "spacing_mm": (float(i), float(j), float(k)), "landmarks": landmarks})


def check_brain_rule(rule: str) -> None:
    """Check a rule for the brain mask, as in `Recipe.brain_mask`.

    Raises:
        UsageError: it is invalid.
    """
    if rule.startswith(COMMAND):
        # The program has to read the image and write the mask.
        missing = [field for field in ("{image}", "{mask}") if field not in rule]
        if missing:
            raise UsageError(
                f"the brain mask {rule!r} lacks {' and '.join(missing)}. Write it like this: "
                '"command hd-bet -i {image} -o {mask}".'
            )
    elif rule not in BRAIN_RULES:
        message = f'unknown brain_mask {rule!r}: choose one of {", ".join(BRAIN_RULES)} or "command PROGRAM ...".'
        raise UsageError(message)
