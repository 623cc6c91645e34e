"""Compare a prediction on a case's grid with the truth there: rows of metrics, and their means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8

from multiseg.errors import UsageError
from multiseg.evaluation import lesions, reliability
from multiseg.evaluation.empty_masks import EMPTY, EmptyPolicy
from multiseg.evaluation.lesions import RULES, LesionRule, find_lesions, lesion_metrics, summarise_lesions
from multiseg.evaluation.metrics import TOLERANCE_MM, CaseMetrics, case_metrics, summarise
from multiseg.evaluation.own_metrics import Metric, own_means, own_values
from multiseg.labels import IGNORE, LabelSpace
from multiseg.store.reader import Case, Database, Store

KEY = ["database", "label", "modalities", "learnt"]
COLUMNS = (*CaseMetrics.__dataclass_fields__, *lesions.COLUMNS, *reliability.COLUMNS)
"""The columns of metrics: part of an evaluation's identity, so that one without a new column is not resumed."""


@dataclass(frozen=True)
class ScoringOptions:
    """How a prediction is scored.

    Attributes:
        tolerance_mm: of the surface Dice.
        lesion_rule: what is one lesion, and which count: a name of `lesions.RULES`.
        empty: what an empty truth or prediction scores: a name of `empty_masks.EMPTY`.

    Raises:
        UsageError: the tolerance is not a number from 0 on, or a name is unknown.
    """

    tolerance_mm: float = TOLERANCE_MM
    lesion_rule: str = "ours"
    empty: str = "undefined"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise UsageError(f"the tolerance is {self.tolerance_mm} mm: give a number from 0 on.")
        for what, name, known in (
            ("lesion rule", self.lesion_rule, RULES),
            ("rule for empty masks", self.empty, EMPTY),
        ):
            if name not in known:
                raise UsageError(f"there is no {what} {name!r}: give one of {', '.join(known)}.")

    @property
    def rule(self) -> LesionRule:
        return RULES[self.lesion_rule]

    @property
    def policy(self) -> EmptyPolicy:
        return EMPTY[self.empty]

    @property
    def definitions(self) -> tuple[LesionRule, EmptyPolicy]:
        """What the names mean: part of an evaluation's identity."""
        return self.rule, self.policy


def why_not_comparable(store: Store, case: Case, space: LabelSpace, lesion_assumed: bool) -> str:
    """Why nothing can be compared with the annotations of a case; "" if something can."""
    if not store[case.database].label_view(case, space).annotated.any():
        return f"it is not annotated for {', '.join(space.names)}"
    if lesion_assumed and not store[case.database].label_view(case, LabelSpace()).annotated.any():
        return "it is not annotated for lesions, which were to be assumed"
    return ""


@dataclass(frozen=True, eq=False)
class Truth:
    """What the predictions for a case are compared with.

    Attributes:
        target: index in the label space; 255 is ignored.
        annotated: the labels of the space that the case is annotated for.
        assumed: what is put into every prediction where it is not 0.
    """

    target: UInt8[np.ndarray, "i j k"]
    annotated: Bool[np.ndarray, " label"]
    assumed: UInt8[np.ndarray, "i j k"]

    def completed(self, predicted: UInt8[np.ndarray, "i j k"]) -> UInt8[np.ndarray, "i j k"]:
        """The prediction with what is assumed."""
        return np.where(self.assumed > 0, self.assumed, predicted)


def truth_of(
    database: Database,
    case: Case,
    codes: UInt8[np.ndarray, "annotation i j k"],
    space: LabelSpace,
    lesion_assumed: bool,
) -> Truth:
    """The truth of a case in a label space, from its stored codes."""
    view = database.label_view(case, space)
    target = view.target(codes)
    assumed = np.zeros_like(target)
    if lesion_assumed:
        is_lesion = database.label_view(case, LabelSpace()).target(codes) == 1
        lesions = [index for index, label in enumerate(space.labels, start=1) if label.kind == "lesion"]
        if lesions:
            assumed = np.where(is_lesion & np.isin(target, lesions), target, 0).astype(np.uint8)
        else:
            target = np.where(is_lesion, IGNORE, target).astype(np.uint8)
    return Truth(target, view.annotated, assumed)


def compared_rows(
    case: Case,
    truth: Truth,
    predicted: UInt8[np.ndarray, "i j k"],
    space: LabelSpace,
    own: Mapping[str, Metric],
    options: ScoringOptions = ScoringOptions(),
) -> Iterator[dict[str, Any]]:
    """A row of metrics for each annotated label of a case, without the sequences it was predicted from.

    Lesions are counted for labels of this kind; for tissues these columns are NaN, and those of `reliability` always.
    """
    looked_at, spacing_mm = truth.target != IGNORE, case.grid.spacing_mm
    for label, one in enumerate(space.labels, start=1):
        if truth.annotated[label - 1]:
            mask, expected = (predicted == label) & looked_at, truth.target == label
            metrics = case_metrics(mask, expected, spacing_mm, None, options.tolerance_mm, options.policy)
            counted = lesions.no_lesion_metrics()
            if one.kind == "lesion":
                counted = lesion_metrics(find_lesions(mask, expected, spacing_mm, options.rule), options.policy)
            own_columns = own_values(own, mask, expected, spacing_mm)
            yield {"database": case.database, "case": case.name, "label": one.name, "modalities": "",
                   "num_modalities": 0, **asdict(metrics), **counted, **reliability.no_confidence(),
                   **own_columns}  # fmt: skip


def summary_of(cases: pd.DataFrame, own: Sequence[str] = (), bins: pd.DataFrame | None = None) -> pd.DataFrame:
    """Means, standard deviations and counts by database, label, subset and `learnt`, in the order of evaluation.

    Args:
        bins: see `reliability.reliability_table`.
    """
    rows, fields = [], list(CaseMetrics.__dataclass_fields__)
    errors = {} if bins is None else reliability.pooled_errors(bins)
    undefined = dict.fromkeys(reliability.KINDS.values(), math.nan)
    for key, group in cases.groupby(KEY, sort=False):
        metrics = [CaseMetrics(*values) for values in group[fields].itertuples(index=False, name=None)]
        names = dict(zip(KEY, key if isinstance(key, tuple) else (key,), strict=True))
        own_numbers = own_means(own, {name: group[name].tolist() for name in own})
        counted = summarise_lesions({name: group[name].astype(float).tolist() for name in lesions.COLUMNS})
        trusted = reliability.summarise_confidence({name: group[name].tolist() for name in reliability.COLUMNS})
        num_modalities = int(group["num_modalities"].iloc[0])
        pooled = undefined | errors.get(tuple(str(names[name]) for name in reliability.CELL), {})
        numbers = {**summarise(metrics), **counted, **trusted, **pooled, **own_numbers}
        rows.append({**names, "num_modalities": num_modalities, **numbers})
    return pd.DataFrame(rows)
