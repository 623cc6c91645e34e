"""A federation of hospitals, compared with one model of all their data and with a model of each hospital."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pandas as pd

from multiseg.config import merged
from multiseg.experiments.comparisons import INTERVAL, Table, compared, means, rows_of
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, Run, joint, single, training

QUESTION = "Is a model that hospitals train together without sharing data as good as one trained on all their data?"
FEDERATED, STOCK = "federated, by part", "federated, whole tensors"
SIMPLE, CENTRAL = "federated, by part, nothing kept", "central, drop"
LONE = "sequences of one site alone: "
MARGIN = 0.05
"""The federated model counts as close to the central one if its mean Dice is at most this much lower."""


@dataclass(frozen=True)
class Manner:
    """How the steps of the central training are divided into rounds, and what is kept between rounds."""

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
    """One Multi-Unet with as many steps as the central one. Every training database is a site.

    A step of a site has as many patches from its database as a step of the central training.
    """
    rounds = min(manner.rounds, ground.scale.steps)
    of_site = training(ground, "", ground.training[:1], seed, {"stream": {"draw": {"drop": "uniform"}}}).settings
    federation: dict[str, dict[str, Any]] = {
        "local": {"steps": ground.scale.steps // rounds},
        "aggregate": {"unit": manner.unit, "weights": "equal"},
        "schedule": {"rounds": rounds, "validation_cases": ground.scale.validation_cases},
    }
    if manner.keep_optimiser:
        federation["local"]["keep_optimiser"] = True
    if manner.momentum:
        federation["aggregate"] |= {"strategy": "fedavgm", "momentum": manner.momentum}
    settings = merged(of_site, {"databases": list(ground.training)})
    return Run(f"federated by {manner.unit}, {rounds} rounds, seed {seed}", settings, federation=federation)


def lone_sequences(ground: Ground) -> dict[str, tuple[str, ...]]:
    """The sequences that only one database has, by database; only databases with such a sequence."""
    lone = {database: ground.known_only_to(database) for database in ground.training}
    return {database: sequences for database, sequences in lone.items() if sequences}


def lone_subsets(names: tuple[str, ...]) -> str:
    """Every subset of these sequences, in the form of --subsets."""
    subsets = (subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size))
    return ",".join("+".join(subset) for subset in subsets)


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

    The cases are those for which the first arm has a defined Dice.
    """
    all_cases = rows_of(cases, arms[0]).dropna(subset="dice")[["database", "case"]].drop_duplicates()
    frames = []
    for arm in arms:
        for seed, of_seed in rows_of(cases, arm).groupby("seed"):
            filled = all_cases.merge(of_seed, on=["database", "case"], how="left").assign(arm=arm, seed=seed)
            filled["dice"] = filled["dice"].fillna(0.0)
            frames.append(filled)
    return pd.concat(frames, ignore_index=True) if frames else cases.iloc[:0]


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    ours = [*MANNERS, CENTRAL]
    singles = [alone(name) for name in ground.training]
    everywhere = with_misses(cases, [*ours, *singles])
    lone = cases[cases["arm"].str.startswith(LONE)]
    lone = lone.assign(arm=lone["arm"].str.removeprefix(LONE))
    note = (
        "A case of which a model knows no sequence counts as 0. Nothing kept: 15 rounds of plain FedAvg, every round "
        "with a new optimiser; the others: 30 rounds, each site keeps its Adam, the server's momentum is 0.5."
    )
    listed = "; ".join(f"{database}: {', '.join(names)}" for database, names in lone_sequences(ground).items())
    return [
        Table("Dice with all sequences of each case", means(everywhere, "dice", ground.training), note),
        Table("Paired differences of Dice, mean over databases",
              compared(everywhere, "dice", [(FEDERATED, other) for other in (CENTRAL, STOCK, SIMPLE)]),
              f"{INTERVAL} The federated model is close to the central one if it is at most {MARGIN} worse."),
        Table("The same against each site's own model",
              compared(everywhere, "dice", [(FEDERATED, name) for name in singles]), INTERVAL),
        Table("Dice with nothing but sequences that one site alone has",
              means(lone, "dice", list(lone_sequences(ground))), f"Every subset of them ({listed})."),
        Table("Paired differences of that Dice",
              compared(lone, "dice", [(FEDERATED, STOCK), (FEDERATED, CENTRAL)]), INTERVAL),
    ]  # fmt: skip
