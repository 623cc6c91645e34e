"""Combinations of a pathology and sequences that no training database had (Xu et al. 2024, table 4)."""

from __future__ import annotations

import pandas as pd

from multiseg.experiments.comparisons import INTERVAL, Table, arms_of, difference, means, rows_of
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, joint, single

QUESTION = (
    "Does a pathology that was learnt in T1 only profit from FLAIR and T2 that were learnt from other pathologies?"
)
ELM, BIRCH, ALL, ALL_DROP = "elm only", "birch only, drop", "all, no drop", "all, drop"
SUBSETS = {"fir": ("T1", "T1+T2", "FLAIR+T1+T2"), "gorse": ("T1",)}
"""The subsets of sequences that are tested, by hospital."""
SPELLINGS = {frozenset(subset.split("+")): subset for subsets in SUBSETS.values() for subset in subsets}


def plan(ground: Ground) -> list[Arm]:
    arms = []
    for arm in (ELM, BIRCH, ALL, ALL_DROP):
        for seed in range(ground.num_seeds):
            run = {
                ELM: single(ground, "elm", seed),
                BIRCH: single(ground, "birch", seed, "uniform"),
                ALL: joint(ground, seed, "none"),
                ALL_DROP: joint(ground, seed),
            }[arm]
            # No model was trained on these hospitals, so all their cases are tested.
            arms += [Arm(arm, run, Exam((name,), ",".join(subsets), split="")) for name, subsets in SUBSETS.items()]
    return arms


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    tested = cases.assign(database=[_column(*row) for row in cases[["database", "modalities"]].itertuples(index=False)])
    columns = [f"{name} {subset}" for name, subsets in SUBSETS.items() for subset in subsets]
    differences = [
        {"tested on": column, "arms": f"{ALL_DROP} - {arm}", **_gap(tested[tested["database"] == column], arm)}
        for column in columns
        for arm in arms_of(cases)
        if arm != ALL_DROP
    ]
    note = (
        "fir: chronic stroke, which models learn from elm in T1 only. gorse: glioma, which they learn from birch in "
        "four sequences. A dash: the model was not trained on one of the sequences."
    )
    metrics = {
        "Dice": "dice",
        "Sensitivity": "sensitivity",
        "Precision": "precision",
        "Average symmetric surface distance in mm": "assd_mm",
    }
    return [
        *(
            Table(title, means(tested, metric, columns).drop(columns=["mean", "seeds"]), note)
            for title, metric in metrics.items()
        ),
        Table("Paired differences of Dice", pd.DataFrame(differences).dropna(subset="difference"), INTERVAL),
    ]


def _column(database: str, modalities: str) -> str:
    """Hospital and subset as one name. An evaluation may list the sequences in another order than SUBSETS."""
    return f"{database} {SPELLINGS[frozenset(modalities.split('+'))]}"


def _gap(tested: pd.DataFrame, arm: str) -> dict[str, object]:
    return difference(rows_of(tested, ALL_DROP), rows_of(tested, arm), "dice")
