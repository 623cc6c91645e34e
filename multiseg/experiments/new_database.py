"""A new database: from scratch, fine-tuned or progressive, with few labels and with all (Xu et al. 2024, table 6)."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from multiseg.config import merged
from multiseg.experiments.comparisons import INTERVAL, Table, common_cases, compared, compared_by_database, means
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, Run, training, without

QUESTION = "Does a model of the other databases help to learn a new one, with few labels and with all?"
METHODS = ("scratch", "finetune", "progressive")
AMOUNTS = ("few", "all")
NONE = "none (never saw it)"


def new_databases(ground: Ground) -> tuple[str, ...]:
    """The databases that take turns as the new one, as many as the scale says.

    Every second training database comes first, since similar ones may be next to each other.
    """
    spread = (*ground.training[::2], *ground.training[1::2])
    return tuple(name for name in spread if ground.known_without(name))[: ground.scale.num_finetuned]


def arm_name(method: str, amount: str) -> str:
    return f"{method}, {amount}"


def plan(ground: Ground) -> list[Arm]:
    return [
        Arm(arm, run, Exam((name,)))
        for arm in (NONE, *(arm_name(method, amount) for amount in AMOUNTS for method in METHODS))
        for name in new_databases(ground)
        for seed in range(ground.num_seeds)
        for arm_of_run, run in _runs(ground, name, seed)
        if arm_of_run == arm
    ]


def _runs(ground: Ground, database: str, seed: int) -> Iterator[tuple[str, Run]]:
    """Every run with a new database, with the name of its arm."""
    parent = without(ground, database, seed)
    yield NONE, parent
    for amount in AMOUNTS:
        cases = {"num_cases": ground.scale.few} if amount == "few" else {}
        steps = {"fit": {"num_steps": ground.scale.finetune_steps}, "stream": {"draw": cases}}
        for method in METHODS:
            name = f"{database}, {amount} cases, {method}"
            is_new = method == "scratch"
            start = {"model": {"builder": "multi_unet"}} if is_new else {"start": {"method": method}}
            run = training(ground, name, [database], seed, merged(steps, start), None if is_new else parent)
            yield arm_name(method, amount), run


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    names = new_databases(ground)
    pairs = [
        (arm_name(first, amount), arm_name(second, amount))
        for amount in AMOUNTS
        for first, second in (("finetune", "scratch"), ("progressive", "scratch"), ("progressive", "finetune"))
    ]
    note = (
        f"few: {ground.scale.few} training cases. {NONE}: the model of all other databases, with the sequences that "
        f"it knows. All other arms train {ground.scale.finetune_steps} steps on the new database; except from scratch, "
        f"they start from the model of the others, which was trained {ground.scale.steps} steps. In all arms, also "
        f"those with few labels, the best step is chosen on up to {ground.scale.validation_cases} labelled validation "
        "cases. Modality drop is on. Over the cases that every arm could be tested on."
    )
    return [
        Table("Dice with all sequences", means(common_cases(cases), "dice", names), note),
        Table("Paired differences of Dice, mean over databases", compared(cases, "dice", pairs), INTERVAL),
        Table("Paired differences of Dice by database", compared_by_database(cases, pairs, names), INTERVAL),
    ]
