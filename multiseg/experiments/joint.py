"""One joint model, compared with one model per database (Xu et al. 2024, tables 3, 7 and 8)."""

from __future__ import annotations

import pandas as pd

from multiseg.experiments.comparisons import INTERVAL, Table, compared, compared_by_database, means
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, joint, single

QUESTION = "Is one model of all databases as good as each database's own?"
OWN, OWN_DROP, JOINT = "own model", "own model, drop", "joint model, drop"


def plan(ground: Ground) -> list[Arm]:
    arms = []
    for seed in range(ground.num_seeds):
        for name in ground.training:
            arms.append(Arm(OWN, single(ground, name, seed), Exam((name,))))
            arms.append(Arm(OWN_DROP, single(ground, name, seed, "uniform"), Exam((name,))))
        arms.append(Arm(JOINT, joint(ground, seed), Exam(ground.training)))
    return sorted(arms, key=lambda arm: [OWN, OWN_DROP, JOINT].index(arm.name))


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    pairs = [(JOINT, OWN), (JOINT, OWN_DROP)]
    several = cases[cases["database"].isin([name for name in ground.training if len(ground.sequences[name]) > 1])]
    per_case = "Means over cases (the published sensitivity and precision pool the voxels of all cases)."
    missed = "A missed lesion counts as the diagonal of its volume."
    return [
        Table("Dice with all sequences of each case", means(cases, "dice", ground.training)),
        Table("Paired differences of Dice, mean over databases", compared(cases, "dice", pairs), INTERVAL),
        Table(
            "The same of databases with two sequences or more", compared(several, "dice", [(OWN_DROP, OWN)]), INTERVAL
        ),
        Table(
            "Paired differences of Dice by database", compared_by_database(cases, pairs[:1], ground.training), INTERVAL
        ),
        Table("Sensitivity", means(cases, "sensitivity", ground.training), per_case),
        Table("Precision", means(cases, "precision", ground.training), per_case + " A missed lesion has precision 0."),
        Table("Average symmetric surface distance in mm", means(cases, "assd_mm", ground.training), missed),
        Table("Paired differences of that distance", compared(cases, "assd_mm", pairs), INTERVAL),
    ]
