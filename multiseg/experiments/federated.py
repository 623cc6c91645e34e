"""A federation of hospitals against one model of all their data, and against each hospital alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pandas as pd

from multiseg.config import merged
from multiseg.experiments.comparisons import INTERVAL, Table, compared, means, rows_of
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, Run, joint, single, training

QUESTION = "Is a model that hospitals train together, each keeping its data, as good as one trained on all of it?"
FEDERATED, STOCK = "federated, by part", "federated, whole tensors"
SIMPLE, CENTRAL = "federated, by part, nothing kept", "central, drop"
LONE = "sequences of one site alone: "
MARGIN = 0.05
"""How far the federated model may fall behind the central one, in mean Dice, and still count as close to it."""


@dataclass(frozen=True)
class Manner:
    """How the steps of the central training are shared out over rounds, and what is remembered between these."""

    rounds: int
    unit: str
    keep_optimiser: bool
    momentum: float


MANNERS = {
    FEDERATED: Manner(30, "parts", keep_optimiser=True, momentum=0.5),
    STOCK: Manner(30, "tensors", keep_optimiser=True, momentum=0.5),
    SIMPLE: Manner(15, "parts", keep_optimiser=False, momentum=0.0),
}


def federated(ground: Ground, seed: int, manner: Manner) -> Run:
    """One Multi-Unet by as many steps as the central one, every training database a site of its own.

    A site shows as many patches a step as it has in a step of the central training.
    """
    rounds = min(manner.rounds, ground.scale.steps)
    own = training(ground, "", ground.training[:1], seed, {"stream": {"draw": {"drop": "uniform"}}}).settings
    told: dict[str, dict[str, Any]] = {
        "local": {"steps": ground.scale.steps // rounds},
        "aggregate": {"unit": manner.unit, "weights": "equal"},
        "schedule": {"rounds": rounds, "validation_cases": ground.scale.validation_cases},
    }
    if manner.keep_optimiser:
        told["local"]["keep_optimiser"] = True
    if manner.momentum:
        told["aggregate"] |= {"strategy": "fedavgm", "momentum": manner.momentum}
    settings = merged(own, {"databases": list(ground.training)})
    return Run(f"federated by {manner.unit}, {rounds} rounds, seed {seed}", settings, federation=told)


def lone_sequences(ground: Ground) -> dict[str, tuple[str, ...]]:
    """Of each database, the sequences that no other one has, where there are some."""
    held = {name: set(ground.sequences[name]) for name in ground.training}
    lone = {
        name: tuple(
            one for one in ground.sequences[name] if all(one not in held[other] for other in ground.others(name))
        )
        for name in ground.training
    }
    return {name: some for name, some in lone.items() if some}


def lone_subsets(names: tuple[str, ...]) -> str:
    """Every subset of these sequences, as an evaluation is asked for them."""
    subsets = (some for size in range(1, len(names) + 1) for some in itertools.combinations(names, size))
    return ",".join("+".join(some) for some in subsets)


def plan(ground: Ground) -> list[Arm]:
    arms = []
    for seed in range(ground.num_seeds):
        runs = {name: federated(ground, seed, manner) for name, manner in MANNERS.items()}
        runs[CENTRAL] = joint(ground, seed)
        for name, run in runs.items():
            arms.append(Arm(name, run, Exam(ground.training)))
            for database, lone in lone_sequences(ground).items():
                arms.append(Arm(LONE + name, run, Exam((database,), lone_subsets(lone))))
        for name in ground.training:
            arms.append(Arm(alone(name), single(ground, name, seed, "uniform"), Exam(ground.training)))
    return sorted(arms, key=lambda arm: arm.name.startswith(LONE))


def alone(database: str) -> str:
    return f"{database} alone"


def with_misses(cases: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """The rows of these arms, with a Dice of 0 for cases of which a model knows no sequence.

    Which cases there are, and for which Dice is defined, is told by the first of the arms.
    """
    whole = rows_of(cases, arms[0]).dropna(subset="dice")[["database", "case"]].drop_duplicates()
    found = []
    for arm in arms:
        for seed, some in rows_of(cases, arm).groupby("seed"):
            filled = whole.merge(some, on=["database", "case"], how="left").assign(arm=arm, seed=seed)
            filled["dice"] = filled["dice"].fillna(0.0)
            found.append(filled)
    return pd.concat(found, ignore_index=True) if found else cases.iloc[:0]


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    ours = [*MANNERS, CENTRAL]
    singles = [alone(name) for name in ground.training]
    everywhere = with_misses(cases, [*ours, *singles])
    lone = cases[cases["arm"].str.startswith(LONE)]
    lone = lone.assign(arm=lone["arm"].str.removeprefix(LONE))
    by_one = means(lone, "dice", list(lone_sequences(ground)))
    zero = (
        "A case of which a model knows no sequence counts as 0. Nothing kept: 15 rounds of plain FedAvg, every round "
        "with a new optimiser; the others: 30 rounds, each site's Adam goes on, the server's momentum is 0.5."
    )
    held = "; ".join(f"{name}: {', '.join(some)}" for name, some in lone_sequences(ground).items())
    return [
        Table("Dice with all sequences of each case", means(everywhere, "dice", ground.training), zero),
        Table("Paired differences of Dice, mean over databases",
              compared(everywhere, "dice", [(FEDERATED, other) for other in (CENTRAL, STOCK, SIMPLE)]),
              f"{INTERVAL} Close to the central model means: no more than {MARGIN} behind."),
        Table("The same against each site's own model",
              compared(everywhere, "dice", [(FEDERATED, name) for name in singles]), INTERVAL),
        Table("Dice with nothing but sequences that one site alone has", by_one,
              f"Every subset of them ({held})."),
        Table("Paired differences of that Dice",
              compared(lone, "dice", [(FEDERATED, STOCK), (FEDERATED, CENTRAL)]), INTERVAL),
    ]  # fmt: skip
