"""Result tables: numbers by arm and database, paired differences between arms with an interval, Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from multiseg.errors import DataError

RESAMPLES = 10_000
FEWEST = 5
"""With fewer cases of a database, there is no interval."""
CASE = ["database", "case"]
INTERVAL = (
    "low and high: 95% bootstrap interval over cases, resampled within each database (a dash: one has fewer than 5). "
    "It covers the choice of the test patients, not the training: for that see the single seeds. Not corrected for "
    "multiple comparisons."
)


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
    return compared_by_part({name: cases[cases["database"] == name] for name in databases}, "database", pairs)


def compared_by_part(parts: Mapping[str, pd.DataFrame], what: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row per part of the cases and pair of arms: Dice of the first minus that of the second.

    Args:
        what: the name of the column of the parts' names.
    """
    return pd.DataFrame(
        [
            {what: name, **row}
            for name, part in parts.items()
            for row in compared(part, "dice", pairs).to_dict("records")
        ]
    )


def by_part(parts: Mapping[str, pd.DataFrame], spreads: Sequence[str]) -> pd.DataFrame:
    """One row per arm: the Dice of each part of the rows, and of some parts, `spreads`, the range over the seeds."""
    rows = []
    for arm in arms_of(pd.concat(list(parts.values()))):
        of_arm = {name: rows_of(part, arm) for name, part in parts.items()}
        ranges = {f"{name}, seeds": _spread(of_arm[name]) for name in spreads}
        rows.append({"arm": arm, **{name: mean_dice(part) for name, part in of_arm.items()}, **ranges})
    return pd.DataFrame(rows)


def mean_dice(rows: pd.DataFrame) -> float:
    """The mean Dice over databases, of the means over their cases."""
    return float(mean_by_database(rows, "dice").mean())


def _spread(rows: pd.DataFrame) -> str:
    by_seed = [mean_dice(of_seed) for _, of_seed in rows.groupby("seed")]
    return f"{min(by_seed):.3f} to {max(by_seed):.3f}" if by_seed else "-"


@dataclass(frozen=True)
class Difference:
    """The first of two arms minus the second, over the cases for which both are defined.

    Attributes:
        mean: over databases, of the mean over their cases.
        low, high: 95% bootstrap interval over cases; NaN where a database has fewer than 5.
        by_seed: the same mean with each seed alone.
    """

    mean: float
    low: float
    high: float
    num_cases: int
    by_seed: tuple[float, ...]


def per_case(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """One value per database and case: the mean over its rows (seeds, and subsets of its sequences if there are
    several).

    Undefined values are left out. A case without a defined value is NaN.
    """
    return rows.groupby(CASE, sort=False)[column].mean()


def mean_by_database(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """The mean over cases of each database, from the mean over seeds of each case."""
    return per_case(rows, column).groupby(level="database", sort=False).mean()


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, column: str, seed: int = 0) -> Difference:
    """The mean difference of two arms (first minus second), paired by case.

    With m_d the mean over the cases of database d of (mean over seeds of the first - of the second):
        mean = mean over d of m_d
    The interval is that of the percentile bootstrap: cases are resampled with replacement within each database,
    10,000 times from `seed`. So it covers the choice of the test patients. It does not cover the variation of
    trainings: there are few seeds, so the difference of each seed is given too (`by_seed`), and an effect smaller than
    their spread is not established by a narrow interval. It does not generalise to other databases.

    A case that is undefined in one arm (Dice without a lesion), or missing from it, is left out of both. So is a seed
    that is missing from one arm, since its training failed.

    Raises:
        DataError: the arms have no case in common.
    """
    seeds = sorted(set(first["seed"]) & set(second["seed"]))
    first, second = (arm[arm["seed"].isin(seeds)] for arm in (first, second))
    gaps = _gaps(first, second, column)
    if not gaps:
        raise DataError(f"the two arms have no case in common for which {column} is defined.")
    sizes = [len(values) for values in gaps.values()]
    low, high = _interval(gaps, seed) if min(sizes) >= FEWEST else (math.nan, math.nan)
    by_seed = [_mean(gaps)]
    if len(seeds) > 1:
        alone = [[arm[arm["seed"] == number] for arm in (first, second)] for number in seeds]
        by_seed = [_mean(_gaps(one, other, column)) for one, other in alone]
    return Difference(_mean(gaps), low, high, sum(sizes), tuple(by_seed))


def _interval(gaps: Mapping[str, Float[np.ndarray, " _"]], seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for values in gaps.values():
        means += values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1) / len(gaps)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _gaps(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Mapping[str, Float[np.ndarray, " _"]]:
    """By database, the differences of the cases that are defined in both arms."""
    mine, theirs = (per_case(arm, column) for arm in (first, second))
    gaps = (mine - theirs.reindex(mine.index)).dropna()
    return {str(name): values.to_numpy(float) for name, values in gaps.groupby(level="database", sort=False)}


def _mean(gaps: Mapping[str, Float[np.ndarray, " _"]]) -> float:
    return float(np.mean([values.mean() for values in gaps.values()])) if gaps else float("nan")
