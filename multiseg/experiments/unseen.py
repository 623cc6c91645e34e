"""Combinations of pathology and sequences that no training database had (Xu et al. 2024, table 4)."""

from __future__ import annotations

import pandas as pd

from multiseg.experiments.comparisons import INTERVAL, Table, arms_of, difference, means, rows_of
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, joint, single

QUESTION = "Does a pathology that was learnt in T1 only profit from FLAIR and T2 that other pathologies taught?"
ELM, BIRCH, ALL, ALL_DROP = "elm only", "birch only, drop", "all, no drop", "all, drop"
ASKED = {"fir": ("T1", "T1+T2", "FLAIR+T1+T2"), "gorse": ("T1",)}
SETS = {",".join(sorted(name.split("+"))): name for names in ASKED.values() for name in names}


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
            # No case of theirs was trained on, so that all may be tested on.
            arms += [Arm(arm, run, Exam((name,), ",".join(sets), split="")) for name, sets in ASKED.items()]
    return arms


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    asked = cases.assign(database=[_column(*row) for row in cases[["database", "modalities"]].itertuples(index=False)])
    columns = [f"{name} {names}" for name, sets in ASKED.items() for names in sets]
    differences = [
        {"tested on": column, "arms": f"{ALL_DROP} - {arm}", **_gap(asked[asked["database"] == column], arm)}
        for column in columns
        for arm in arms_of(cases)
        if arm != ALL_DROP
    ]
    note = (
        "fir: chronic stroke, which elm taught in T1 only. gorse: glioma, which birch taught in four sequences. "
        "A dash: the model never saw one of the sequences."
    )
    return [
        Table("Dice", means(asked, "dice", columns).drop(columns=["mean", "seeds"]), note),
        Table("Sensitivity", means(asked, "sensitivity", columns).drop(columns=["mean", "seeds"]), note),
        Table("Precision", means(asked, "precision", columns).drop(columns=["mean", "seeds"]), note),
        Table(
            "Average symmetric surface distance in mm",
            means(asked, "assd_mm", columns).drop(columns=["mean", "seeds"]),
            note,
        ),
        Table("Paired differences of Dice", pd.DataFrame(differences).dropna(subset="difference"), INTERVAL),
    ]


def _column(database: str, modalities: str) -> str:
    """The database and its sequences as one name, these as they are asked for."""
    return f"{database} {SETS[','.join(sorted(modalities.split('+')))]}"


def _gap(asked: pd.DataFrame, arm: str) -> dict[str, object]:
    return difference(rows_of(asked, ALL_DROP), rows_of(asked, arm), "dice")
