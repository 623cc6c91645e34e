"""A pathology that no training database had (Xu et al. 2024, table 5)."""

from __future__ import annotations

import pandas as pd

from multiseg.experiments.comparisons import INTERVAL, Table, common_cases, compared, compared_by_database, means
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, single, without

QUESTION = "How well does a joint model find the lesions of a pathology that it never saw?"
OWN, ALONE, EVERY = "own model (upper bound)", "held out, one sequence", "held out, all known sequences"


def lone_sequence(ground: Ground, database: str) -> str:
    """The sequence that the database is tested with: FLAIR if others know it too, else T1, else the first known."""
    known = ground.known_without(database)
    return next((name for name in ("FLAIR", "T1") if name in known), known[0] if known else "")


def plan(ground: Ground) -> list[Arm]:
    arms = []
    for arm in (OWN, ALONE, EVERY):
        for name in ground.training:
            if not ground.known_without(name):
                continue  # a model of the other databases knows none of its sequences
            for seed in range(ground.num_seeds):
                run = single(ground, name, seed) if arm == OWN else without(ground, name, seed)
                exam = Exam((name,), lone_sequence(ground, name)) if arm == ALONE else Exam((name,))
                arms.append(Arm(arm, run, exam))
    return arms


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    names = [name for name in ground.training if ground.known_without(name)]
    fed = pd.DataFrame(
        {
            "held out": name,
            "one sequence": lone_sequence(ground, name),
            "all known": " ".join(ground.known_without(name)),
            "left out (untrained channel)": " ".join(ground.known_only_to(name)),
        }
        for name in names
    )
    several = [name for name in names if len(ground.known_without(name)) > 1]
    unknown = "A sequence that no training database had is never used: the weights of its channel are untrained."
    return [
        Table("What the held-out database's cases are segmented from", fed, unknown),
        Table("Dice", means(common_cases(cases), "dice", names), "Over the cases on which all arms could be tested."),
        Table("Paired differences of Dice, mean over databases",
              compared(cases, "dice", [(EVERY, OWN), (ALONE, OWN)]), INTERVAL),
        Table("More sequences against one, of databases with two known sequences or more",
              compared(cases[cases["database"].isin(several)], "dice", [(EVERY, ALONE)]), INTERVAL),
        Table("More sequences against one, by database",
              compared_by_database(cases, [(EVERY, ALONE)], several), INTERVAL),
    ]  # fmt: skip
