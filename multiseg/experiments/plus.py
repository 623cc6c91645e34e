"""The larger Multi-Unet, compared with the published one after equal steps."""

from __future__ import annotations

import pandas as pd

from multiseg.experiments.comparisons import INTERVAL, Table, compared, compared_by_database, means
from multiseg.experiments.drop import full_sets
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, joint

QUESTION = "Is multi_unet_plus better than multi_unet after as many steps on the same patches?"
PLUS, PLAIN = "multi_unet_plus", "multi_unet"


def plan(ground: Ground) -> list[Arm]:
    return [
        Arm(builder, joint(ground, seed, "uniform", builder), Exam(ground.training, "all"))
        for builder in (PLAIN, PLUS)
        for seed in range(ground.num_seeds)
    ]


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    full, pair = full_sets(cases), [(PLUS, PLAIN)]
    by_database = compared_by_database(full, pair, ground.training)
    return [
        Table("Dice with all sequences", means(full, "dice", ground.training)),
        Table("Dice over all subsets", means(cases, "dice", ground.training)),
        Table("Difference with all sequences", compared(full, "dice", pair), INTERVAL),
        Table("Difference over all subsets", compared(cases, "dice", pair), INTERVAL),
        Table("Difference with all sequences, by database", by_database, INTERVAL),
    ]
