"""The cases of a run's evaluation on the page: with the measured Dice, and the model's segmentation on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multiseg.colours import PREDICTION_COLOUR, colour_of
from multiseg.errors import DataError, UsageError
from multiseg.evaluation.result_folder import SUMMARY
from multiseg.labels import LabelSpace
from multiseg.store.findings import Finding
from multiseg.store.reader import Case
from multiseg.types import Codes
from multiseg.viewer.case_view import (
    MOST_LESIONS,
    CaseView,
    LesionPlace,
    ListedCase,
    OverlayView,
    StructureView,
    lesion_places,
    with_answer,
)
from multiseg.viewer.stored_cases import StoredCases

PREDICTION = "prediction"
NEEDED = ("database", "case", "learnt", "num_modalities", "dice")
Segment = Callable[[Case], tuple[LabelSpace, Codes]]
"""The model's label space, and its segmentation of a stored case."""


class EvaluatedCases:
    """The cases of a store that a run was evaluated on; without an evaluation all of them.

    Args:
        segment: segments a case when a person asks for it.
    """

    def __init__(self, title: str, stored: StoredCases, table: pd.DataFrame | None, segment: Segment) -> None:
        self.title, self.stored, self.segment = title, stored, segment
        self.dice_word = "" if table is None else "measured"
        self.answers: dict[str, tuple[OverlayView, Codes]] = {}
        self.listed: Sequence[ListedCase] = stored.listed if table is None else list(_lines(stored, table))

    def view(self, name: str) -> CaseView:
        if name not in self.stored.cases:
            raise DataError(f"the store {self.stored.title} does not have {name}.")
        view = self.stored.view(name)
        return with_answer(view, *self.answers[name]) if name in self.answers else view

    def answer(self, name: str) -> None:
        """Segment a case with the model of the run; from then on its view has the answer.

        Raises:
            DataError: the model cannot segment it.
        """
        space, codes = self.segment(self.stored.cases[name])
        ml = float(np.prod(self.stored.store.spacing_mm)) / 1000
        counts = np.bincount(codes.ravel(), minlength=256)
        num = len(space.labels)
        structures = tuple(
            StructureView(
                code, label.name, label.kind, PREDICTION_COLOUR if num == 1 else colour_of(code - 1), counts[code] * ml
            )
            for code, label in enumerate(space.labels, start=1)
        )
        self.answers[name] = OverlayView(PREDICTION, True, structures), codes

    def findings(self, name: str) -> tuple[list[Finding], list[LesionPlace]]:
        findings, places = self.stored.findings(name)
        if name in self.answers:
            overlay, codes = self.answers[name]
            ml = float(np.prod(self.stored.store.spacing_mm)) / 1000
            places = sorted([*places, *lesion_places(codes, overlay, ml)], key=lambda place: -place.ml)
        return findings, places[:MOST_LESIONS]


def read_evaluation(folder: Path) -> pd.DataFrame:
    """The table of the cases of an evaluation.

    Raises:
        UsageError: the folder has none.
    """
    file = folder / "cases.csv"
    if not file.is_file():
        raise UsageError(f"{folder} is not an evaluation: it has no cases.csv. Run multiseg evaluate first.")
    table = pd.read_csv(file, dtype={"database": str, "case": str}, keep_default_na=False, na_values={"dice": [""]})
    if missing := [name for name in NEEDED if name not in table]:
        raise UsageError(f"{file} has no column {', '.join(missing)}, so it is no table of multiseg evaluate.")
    return table


def about_evaluation(folder: Path) -> dict[str, Any]:
    """What summary.json says of an evaluation: its store and its model; empty if it cannot be read."""
    try:
        about = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def newest_evaluation(run: Path) -> Path | None:
    """The folder of the newest evaluation in a run; None if there is none."""
    tables = sorted(run.glob("evaluation-*/cases.csv"), key=lambda file: file.stat().st_mtime)
    return tables[-1].parent if tables else None


def _lines(stored: StoredCases, table: pd.DataFrame) -> list[ListedCase]:
    """A line for each evaluated case, with the lowest Dice of its structures from the most sequences."""
    known = {line.name: line for line in stored.listed}
    lines = []
    for (database, case), rows in table.groupby(["database", "case"], sort=False):
        name = f"{database}/{case}"
        line = known.get(name) or ListedCase(name, str(database), problem="the store does not have this case")
        full = rows[rows["num_modalities"] == rows["num_modalities"].max()]
        lowest = full["dice"].min()
        learnt = [f"learnt from ({use})" for use in rows["learnt"].unique() if use]
        dice = None if pd.isna(lowest) else float(lowest)
        lines.append(replace(line, flags=(*line.flags, *learnt), dice=dice))
    return lines
