"""What a picture shows of one case: where one structure is told apart its outlines, of several each in its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from multiseg.evaluation.metrics import dice
from multiseg.evaluation.montage import CasePanel, Parcels
from multiseg.labels import IGNORE

Images = Mapping[str, Float[np.ndarray, "i j k"]]
Codes = UInt8[np.ndarray, "i j k"]
"""Indices in a label space."""


def compared_panel(
    name: str,
    pathology: str,
    images: Images,
    truth: Codes,
    predicted: Codes,
    structures: Sequence[str],
    annotated: Bool[np.ndarray, " label"],
    spacing_mm: tuple[float, float, float],
    note: str = "",
) -> CasePanel:
    """Truth and prediction of a case, with the Dice of every structure by itself.

    Args:
        truth: with IGNORE where nobody is to look; the prediction is not shown there either.
        annotated: which of the structures anyone looked for.
        note: stands behind the Dice, such as ", trained on".
    """
    truth, predicted = (np.where(truth == IGNORE, 0, codes).astype(np.uint8) for codes in (truth, predicted))
    said = {
        one: _agreement(predicted == at, truth == at, bool(annotated[at - 1]))
        for at, one in enumerate(structures, start=1)
    }
    if len(structures) == 1:
        caption = f"{pathology}\n{said[structures[0]]}{note}"
        return CasePanel(name, caption, dict(images), truth == 1, predicted == 1, spacing_mm)
    parcels = {"truth": Parcels(truth, tuple(structures)), "prediction": Parcels(predicted, tuple(structures))}
    values = {one: text.removeprefix("Dice ") for one, text in said.items()}
    return CasePanel(name, f"{pathology}\nDice{note}:", dict(images), None, None, spacing_mm, parcels, values)


def answer_panel(
    name: str, images: Images, codes: Codes, volumes_ml: Mapping[str, float], spacing_mm: tuple[float, float, float]
) -> CasePanel:
    """A segmentation by itself, with the volume of every structure.

    Args:
        volumes_ml: by structure, in the order of the codes.
    """
    said = {one: f"{ml:.1f} ml" for one, ml in volumes_ml.items()}
    if len(said) == 1:
        caption = "".join(f"{one} {text}" for one, text in said.items())
        return CasePanel(name, caption, dict(images), None, codes == 1, spacing_mm)
    return CasePanel(
        name, "", dict(images), None, None, spacing_mm, {"segmentation": Parcels(codes, tuple(said))}, said
    )


def _agreement(predicted: Bool[np.ndarray, "i j k"], truth: Bool[np.ndarray, "i j k"], annotated: bool) -> str:
    if not annotated:
        return "not annotated"
    if truth.any():
        return f"Dice {dice(predicted, truth):.2f}"
    return "false alarm" if predicted.any() else "none there"
