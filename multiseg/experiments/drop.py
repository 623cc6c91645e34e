"""Each architecture with and without modality drop (Xu et al. 2024, table 2)."""

from __future__ import annotations

import pandas as pd

from multiseg.experiments.comparisons import INTERVAL, Table, arms_of, compared, means
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, joint

QUESTION = "What does dropping sequences in training cost if a case has all, and gain if some are missing?"
ARCHITECTURES = ("multi_unet", "lf_unet", "maf_unet")
CONSISTENT = "multi_unet, drop, consistency"
CONSISTENCY = {"consistency": 1.0, "consistency_partner": "random"}
"""Not in the paper: the answers from what a patch keeps, and from a random part of it, shall be alike."""


def arm_name(builder: str, drop: str) -> str:
    return f"{builder}, {'drop' if drop == 'uniform' else 'no drop'}"


def plan(ground: Ground) -> list[Arm]:
    exam, seeds = Exam(ground.training, "all"), range(ground.num_seeds)
    published = [
        Arm(arm_name(builder, drop), joint(ground, seed, drop, builder), exam)
        for builder in ARCHITECTURES
        for drop in ("none", "uniform")
        for seed in seeds
    ]
    return published + [Arm(CONSISTENT, joint(ground, seed, fit=CONSISTENCY), exam) for seed in seeds]


def changes(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of incomplete subsets, with the change of Dice against all sequences (same case, model and seed)."""
    keys = ["arm", "seed", "database", "case"]
    num_all = cases.groupby(keys)["num_modalities"].transform("max")
    full = cases[cases["num_modalities"] == num_all].set_index(keys)["dice"].rename("full_dice")
    incomplete = cases[cases["num_modalities"] < num_all].join(full, on=keys)
    return incomplete.assign(change=incomplete["dice"] - incomplete["full_dice"])


def full_sets(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows with all sequences of a case."""
    complete = cases.groupby(["arm", "seed", "database", "case"])["num_modalities"].transform("max")
    return cases[cases["num_modalities"] == complete]


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    full, fewer = full_sets(cases), changes(cases)
    several = [name for name in ground.training if name in set(fewer["database"])]
    pairs = [(arm_name(builder, "uniform"), arm_name(builder, "none")) for builder in ARCHITECTURES]
    across = [(arm_name("multi_unet", "uniform"), arm) for arm in arms_of(cases) if arm.endswith(", drop")][1:]
    term = [(CONSISTENT, arm_name("multi_unet", drop)) for drop in ("uniform", "none")]
    note = (
        "The mean over all incomplete subsets of a case's sequences, minus Dice with all, for the databases with two "
        "sequences or more."
    )
    return [
        Table("Dice with all sequences", means(full, "dice", ground.training)),
        Table("Change of Dice where sequences are missing", means(fewer, "change", several), note),
        Table("Drop less no drop, with all sequences", compared(full, "dice", pairs), INTERVAL),
        Table("Drop less no drop, Dice of the incomplete subsets", compared(fewer, "dice", pairs), INTERVAL),
        Table("multi_unet less others, drop, with all sequences", compared(full, "dice", across), INTERVAL),
        Table(
            "multi_unet less others, drop, Dice of the incomplete subsets", compared(fewer, "dice", across), INTERVAL
        ),
        Table("Drop with consistency, with all sequences", compared(full, "dice", term), INTERVAL),
        Table("Drop with consistency, Dice of the incomplete subsets", compared(fewer, "dice", term), INTERVAL),
    ]
