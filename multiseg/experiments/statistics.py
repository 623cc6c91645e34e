"""Paired differences between two arms of an experiment, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from multiseg.errors import DataError

RESAMPLES = 10_000
FEWEST = 5
"""With fewer cases of a database, there is no interval."""
CASE = ["database", "case"]


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


def per_case(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One value per case: the mean over its rows (seeds, and subsets of its sequences if there are several).

    Undefined values are left out. A case without a defined value is NaN.
    """
    return rows.groupby(CASE, sort=False)[column].mean().reset_index()


def mean_by_database(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """The mean over cases of each database, from the mean over seeds of each case."""
    return per_case(rows, column).groupby("database", sort=False)[column].mean()


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
    rng = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for values in gaps.values():
        means += values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1) / len(gaps)
    sizes = [len(values) for values in gaps.values()]
    low, high = np.percentile(means, [2.5, 97.5]) if min(sizes) >= FEWEST else (np.nan, np.nan)
    by_seed = [
        _mean(_gaps(first[first["seed"] == number], second[second["seed"] == number], column)) for number in seeds
    ]
    return Difference(_mean(gaps), float(low), float(high), sum(sizes), tuple(by_seed))


def _gaps(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Mapping[str, Float[np.ndarray, " _"]]:
    """By database, the differences of the cases that are defined in both arms."""
    both = per_case(first, column).merge(per_case(second, column), on=CASE, suffixes=("_first", "_second"))
    both["gap"] = both[f"{column}_first"] - both[f"{column}_second"]
    defined = both.dropna(subset="gap")
    return {str(name): group["gap"].to_numpy(float) for name, group in defined.groupby("database", sort=False)}


def _mean(gaps: Mapping[str, Float[np.ndarray, " _"]]) -> float:
    return float(np.mean([values.mean() for values in gaps.values()])) if gaps else float("nan")
