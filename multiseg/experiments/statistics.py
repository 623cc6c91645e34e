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
"""Cases of a database below which drawing them again says nothing."""
CASE = ["database", "case"]


@dataclass(frozen=True)
class Difference:
    """How much better the first of two arms is, over the cases that both define.

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
    """One value a case: the mean over its rows (seeds, and subsets of its sequences if there are several).

    Rows that do not define the number are left out; a case without any other is NaN.
    """
    return rows.groupby(CASE, sort=False)[column].mean().reset_index()


def mean_by_database(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """The mean over cases of each database, from the mean over seeds of each case."""
    return per_case(rows, column).groupby("database", sort=False)[column].mean()


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, column: str, seed: int = 0) -> Difference:
    """First less second, case by case.

    With m_d the mean over the cases of database d of (mean over seeds of the first - of the second):
        mean = mean over d of m_d
    The interval is that of the percentile bootstrap: cases are drawn again with replacement within each
    database, 10,000 times from `seed`, and the mean is taken anew. So it covers which patients happened to be
    tested. It does not cover how training went: the seeds are few, so that their own differences are given
    beside it (`by_seed`), and an effect smaller than their spread is not shown by a narrow interval. Databases
    are taken as they are; it says nothing of others.

    A case whose number is undefined in an arm (Dice without a lesion), or that one arm lacks, is left out of both;
    so is a seed that one arm lacks, since its training failed.

    Raises:
        DataError: the arms have no case in common.
    """
    seeds = sorted(set(first["seed"]) & set(second["seed"]))
    first, second = (arm[arm["seed"].isin(seeds)] for arm in (first, second))
    gaps = _gaps(first, second, column)
    if not gaps:
        raise DataError(f"the two arms have no case in common for which {column} is defined.")
    rng = np.random.default_rng(seed)
    drawn = np.zeros(RESAMPLES)
    for values in gaps.values():
        drawn += values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1) / len(gaps)
    enough = min(len(values) for values in gaps.values()) >= FEWEST
    low, high = np.percentile(drawn, [2.5, 97.5]) if enough else (np.nan, np.nan)
    by_seed = []
    for one in seeds:
        of_seed = _gaps(first[first["seed"] == one], second[second["seed"] == one], column)
        by_seed.append(_mean(of_seed))
    num_cases = sum(len(values) for values in gaps.values())
    return Difference(_mean(gaps), float(low), float(high), num_cases, tuple(by_seed))


def _gaps(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Mapping[str, Float[np.ndarray, " _"]]:
    """By database, the differences of the cases that both arms define."""
    both = per_case(first, column).merge(per_case(second, column), on=CASE, suffixes=("_first", "_second"))
    both["gap"] = both[f"{column}_first"] - both[f"{column}_second"]
    defined = both.dropna(subset="gap")
    return {str(name): group["gap"].to_numpy(float) for name, group in defined.groupby("database", sort=False)}


def _mean(gaps: Mapping[str, Float[np.ndarray, " _"]]) -> float:
    return float(np.mean([values.mean() for values in gaps.values()])) if gaps else float("nan")
