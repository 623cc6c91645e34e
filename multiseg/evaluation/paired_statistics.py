"""Statistics of paired differences: a bootstrap interval, a signed-rank test, and a correction for several tests."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float

from multiseg.errors import UsageError

FEWEST = 5
"""With fewer cases there is no interval."""
_DIGITS = 12
"""Differences are rounded to so many, so that the order of a sum makes no ranks."""


@dataclass(frozen=True)
class CompareOptions:
    """How intervals are made.

    Attributes:
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UsageError: there are fewer than 100 resamples.
    """

    num_resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 100:
            raise UsageError(f"{self.num_resamples} resamples give no interval: take 100 or more, such as 10000.")


def paired_numbers(cases: pd.DataFrame, options: CompareOptions) -> dict[str, float | int]:
    """Means, difference with standard deviation and interval, and p, of cases.

    Args:
        cases: columns `baseline_value`, `value` and `difference`, all defined; a row for each case.
    """
    gaps = cases["difference"].to_numpy(dtype=float)
    low, high = bootstrap_interval(gaps, options)
    return {
        "num_cases": len(gaps),
        "baseline_mean": float(cases["baseline_value"].mean()),
        "mean": float(cases["value"].mean()),
        "difference": float(gaps.mean()) if len(gaps) else math.nan,
        "difference_sd": float(gaps.std(ddof=1)) if len(gaps) > 1 else math.nan,
        "low": low,
        "high": high,
        "p": signed_rank_p(gaps),
    }


def bootstrap_interval(values: Float[np.ndarray, " case"], options: CompareOptions) -> tuple[float, float]:
    """The 95% percentile interval of the mean over cases drawn again with replacement (Efron 1979).

    NaN with fewer than `FEWEST` cases. The same number of cases has the same draws.
    """
    if len(values) < FEWEST:
        return math.nan, math.nan
    means = _draws(len(values), options) @ values / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=1)
def _draws(num_cases: int, options: CompareOptions) -> Float[np.ndarray, "draw case"]:
    """How often each case is drawn, in each resample."""
    rng = np.random.default_rng(options.seed)
    chances = np.full(num_cases, 1 / num_cases)
    return rng.multinomial(num_cases, chances, size=options.num_resamples).astype(float)


def signed_rank_p(differences: Float[np.ndarray, " case"]) -> float:
    """Two-sided p of the signed-rank test of Wilcoxon 1945, without the cases that do not differ.

    1 if no case differs, NaN without cases.
    """
    if not len(differences):
        return math.nan
    rounded = np.round(differences, _DIGITS)
    nonzero = rounded[rounded != 0]
    if not len(nonzero):
        return 1.0
    from scipy.stats import wilcoxon  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few cases with ties, which get the normal approximation
        return float(wilcoxon(nonzero).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p values (Holm 1979): of m, the i-th smallest times m - i, never below a smaller one; NaN stays."""
    defined = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    order = sorted(defined, key=lambda index: p_values[index])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
