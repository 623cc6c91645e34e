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
        heads = [str(name) for name in self.frame.columns]
        lines = [f"| {' | '.join(heads)} |", "|" + "|".join("---" for _ in heads) + "|"]
        lines += [f"| {' | '.join(map(_shown, row))} |" for row in self.frame.itertuples(index=False, name=None)]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])]) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def rows_of(cases: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The rows of one arm; none, in the right columns, where it failed."""
    return cases[cases["arm"] == arm]


def arms_of(cases: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(cases["arm"]))


def common_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of those cases that every arm was tested on."""
    num_arms = cases.groupby(["database", "case"])["arm"].transform("nunique")
    return cases[num_arms == cases["arm"].nunique()]


def means(cases: pd.DataFrame, column: str, databases: Sequence[str]) -> pd.DataFrame:
    """A row an arm: the mean by database, over these, and how far single seeds' means lie from each other."""
    rows = []
    for arm in arms_of(cases):
        some = rows_of(cases, arm)
        by_database = mean_by_database(some, column).reindex(list(databases))
        by_seed = [
            float(mean_by_database(group, column).reindex(list(databases)).mean()) for _, group in some.groupby("seed")
        ]
        spread = f"{min(by_seed):.3f} to {max(by_seed):.3f}"
        rows.append({"arm": arm, **by_database.to_dict(), "mean": float(by_database.mean()), "seeds": spread})
    return pd.DataFrame(rows)


def difference(first: pd.DataFrame, second: pd.DataFrame, column: str) -> dict[str, object]:
    """The cells of a paired difference."""
    if first.empty or second.empty:
        return {"difference": math.nan, "low": math.nan, "high": math.nan, "single seeds": "-", "cases": 0}
    found = paired_difference(first, second, column)
    seeds = ", ".join(f"{value:+.3f}" for value in found.by_seed)
    return {
        "difference": found.mean, "low": found.low, "high": found.high, "single seeds": seeds, "cases": found.num_cases,
    }  # fmt: skip


def compared(cases: pd.DataFrame, column: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """A row a pair of arms: the first less the second."""
    return pd.DataFrame(
        [
            {"arms": f"{a} - {b}", **difference(rows_of(cases, a), rows_of(cases, b), column)}
            for a, b in pairs
            if {a, b} <= set(cases["arm"])
        ]
    )


INTERVAL = (
    "low and high: 95% bootstrap interval over cases, drawn again within each database (a dash: one has fewer than 5). "
    "It covers which patients were tested, not the training: for that see the single seeds. Not corrected for how many "
    "differences are looked at."
)
