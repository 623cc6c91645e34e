"""Result tables: numbers by arm and database, differences between arms, Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from multiseg.experiments.statistics import mean_by_database, paired_difference


@dataclass(frozen=True, eq=False)
class Table:
    """A titled table; `note` says what its numbers mean."""

    title: str
    frame: pd.DataFrame
    note: str = ""

    def to_markdown(self) -> str:
        columns = [str(name) for name in self.frame.columns]
        lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in self.frame.itertuples(index=False, name=None)]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])]) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def rows_of(cases: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The rows of one arm. If it failed there are none, but all columns."""
    return cases[cases["arm"] == arm]


def arms_of(cases: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(cases["arm"]))


def common_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cases that every arm was tested on."""
    num_arms = cases.groupby(["database", "case"])["arm"].transform("nunique")
    return cases[num_arms == cases["arm"].nunique()]


def means(cases: pd.DataFrame, column: str, databases: Sequence[str]) -> pd.DataFrame:
    """One row per arm: the mean of each database, their mean, and its range over the seeds."""
    rows = []
    for arm in arms_of(cases):
        of_arm = rows_of(cases, arm)
        by_database = mean_by_database(of_arm, column).reindex(list(databases))
        by_seed = [
            float(mean_by_database(of_seed, column).reindex(list(databases)).mean())
            for _, of_seed in of_arm.groupby("seed")
        ]
        spread = f"{min(by_seed):.3f} to {max(by_seed):.3f}"
        rows.append({"arm": arm, **by_database.to_dict(), "mean": float(by_database.mean()), "seeds": spread})
    return pd.DataFrame(rows)


def difference(first: pd.DataFrame, second: pd.DataFrame, column: str) -> dict[str, object]:
    """The paired difference of two arms as cells of a row."""
    if first.empty or second.empty:
        return {"difference": math.nan, "low": math.nan, "high": math.nan, "single seeds": "-", "cases": 0}
    gap = paired_difference(first, second, column)
    seeds = ", ".join(f"{value:+.3f}" for value in gap.by_seed)
    return {"difference": gap.mean, "low": gap.low, "high": gap.high, "single seeds": seeds, "cases": gap.num_cases}


def compared(cases: pd.DataFrame, column: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row per pair of arms: the first minus the second. Pairs with an arm that was not tested are left out."""
    return pd.DataFrame(
        [
            {"arms": f"{first} - {second}", **difference(rows_of(cases, first), rows_of(cases, second), column)}
            for first, second in pairs
            if {first, second} <= set(cases["arm"])
        ]
    )


def compared_by_database(
    cases: pd.DataFrame, pairs: Sequence[tuple[str, str]], databases: Sequence[str]
) -> pd.DataFrame:
    """One row per database and pair of arms: Dice of the first minus that of the second."""
    return pd.DataFrame(
        [
            {"database": name, **row}
            for name in databases
            for row in compared(cases[cases["database"] == name], "dice", pairs).to_dict("records")
        ]
    )


INTERVAL = (
    "low and high: 95% bootstrap interval over cases, resampled within each database (a dash: one has fewer than 5). "
    "It covers the choice of the test patients, not the training: for that see the single seeds. Not corrected for "
    "multiple comparisons."
)
