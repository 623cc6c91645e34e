"""The panel of one case in a picture: outlines of a single structure, or several structures in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from multiseg.evaluation.case_panel import PNG, CasePanel, Parcels
from multiseg.evaluation.metrics import dice
from multiseg.evaluation.slice_panel import slice_of
from multiseg.files import check_files
from multiseg.labels import IGNORE
from multiseg.store.reader import Case, Store

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
    """Truth and prediction of a case, with the Dice of every structure.

    Args:
        truth: IGNORE marks ignored voxels; the prediction is not shown there either.
        annotated: which of the structures the case is annotated for.
        note: text behind the Dice, such as ", trained on".
    """
    truth, predicted = (np.where(truth == IGNORE, 0, codes).astype(np.uint8) for codes in (truth, predicted))
    results = {
        structure: _agreement(predicted == code, truth == code, bool(annotated[code - 1]))
        for code, structure in enumerate(structures, start=1)
    }
    if len(structures) == 1:
        caption = f"{pathology}\n{results[structures[0]]}{note}"
        return CasePanel(name, caption, dict(images), truth == 1, predicted == 1, spacing_mm)
    parcels = {"truth": Parcels(truth, tuple(structures)), "prediction": Parcels(predicted, tuple(structures))}
    values = {structure: text.removeprefix("Dice ") for structure, text in results.items()}
    return CasePanel(name, f"{pathology}\nDice{note}:", dict(images), None, None, spacing_mm, parcels, values)


def answer_panel(
    name: str, images: Images, codes: Codes, volumes_ml: Mapping[str, float], spacing_mm: tuple[float, float, float]
) -> CasePanel:
    """A segmentation without truth, with the volume of every structure.

    Args:
        volumes_ml: by structure, in the order of the codes.
    """
    values = {structure: f"{ml:.1f} ml" for structure, ml in volumes_ml.items()}
    if len(values) == 1:
        caption = "".join(f"{structure} {text}" for structure, text in values.items())
        return CasePanel(name, caption, dict(images), None, codes == 1, spacing_mm)
    parcels = {"segmentation": Parcels(codes, tuple(values))}
    return CasePanel(name, "", dict(images), None, None, spacing_mm, parcels, values)


def stored_panel(store: Store, case: Case) -> CasePanel:
    """A case of a store, with the volume of the lesions of each annotation."""
    database = store[case.database]
    images, codes = database.whole(case)
    lesion, parcels, lines = None, {}, [case.pathology]
    ml = float(np.prod(store.spacing_mm)) / 1000
    for index, (name, schema) in enumerate(database.schemas.items()):
        if not case.annotated[index]:
            continue
        lesion_codes = [code for code, part in enumerate(schema.structures, start=1) if part.kind == "lesion"]
        if lesion_codes:
            marked = np.isin(codes[index], lesion_codes)
            lesion = marked if lesion is None else lesion | marked
            lines.append(f"{name}: {np.count_nonzero(marked) * ml:.1f} ml")
        if len(schema.structures) > 1:
            parcels[name] = Parcels(np.where(codes[index] == IGNORE, 0, codes[index]), schema.names)
    shown = {name: images[database.modalities.index(name)].astype(np.float32) for name in case.modalities}
    return CasePanel(f"{case.database}/{case.name}", "\n".join(lines), shown, lesion, None, store.spacing_mm, parcels)


def save_gallery(path: Path, store: Store, cases: Sequence[Case], title: str = "", overwrite: bool = False) -> Path:
    """Draw cases as a PNG: sequences with the outline of all lesions, and structures in colour.

    Raises:
        UsageError: there is no case, or see `save_montage`.
    """
    from multiseg.evaluation.montage import save_montage  # slow to import

    check_files([path], overwrite=overwrite, kinds=PNG)  # before anything is drawn
    save_montage(path, [slice_of(stored_panel(store, case)) for case in cases], title, overwrite)
    return path


def _agreement(predicted: Bool[np.ndarray, "i j k"], truth: Bool[np.ndarray, "i j k"], annotated: bool) -> str:
    if not annotated:
        return "not annotated"
    if truth.any():
        return f"Dice {dice(predicted, truth):.2f}"
    return "false alarm" if predicted.any() else "none"
