"""What the intensities of each sequence look like, to notice a scan whose sequence is named wrongly.

A histogram has `BINS` bins of a scan's z-scores in the brain. The distance of two histograms is half the sum of the
absolute differences (total variation), from 0 to 1. A scan is compared with the mean histogram of each database and
sequence that the model learnt from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from multiseg.errors import DataError

BINS, LIMIT = 64, 4.0
"""Values beyond 4 standard deviations count in the first and the last bin."""
DIGITS = 5
SHARE = 0.95
"""The share of training scans that are not to be warned of, by which the margin is set."""
Histogram: TypeAlias = Float[np.ndarray, "64"]
ByDatabase: TypeAlias = Mapping[str, Mapping[str, Histogram]]
"""Histograms by sequence and database."""


@dataclass(frozen=True, eq=False)
class Contrasts:
    """The mean histograms of a model's training scans.

    Attributes:
        margin: a scan looks mislabelled if another sequence is nearer than its own by more than this.
    """

    means: ByDatabase
    margin: float

    def to_json(self) -> dict[str, Any]:
        return {
            "margin": self.margin,
            "means": {
                name: {database: [round(float(value), DIGITS) for value in mean] for database, mean in means.items()}
                for name, means in self.means.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contrasts:
        """Raises DataError if a histogram has another number of bins."""
        means = {
            str(name): {str(database): np.array(mean, np.float64) for database, mean in by_database.items()}
            for name, by_database in data["means"].items()
        }
        shapes = {mean.shape for by_database in means.values() for mean in by_database.values()}
        if shapes - {(BINS,)}:
            raise DataError(f"the histograms of sequences have the shapes {sorted(shapes)} instead of {BINS} bins.")
        return cls(means, float(data["margin"]))


@dataclass(frozen=True)
class Suspect:
    """A scan that looks like another sequence: the distances to that one, and to the one it is said to be."""

    name: str
    like: str
    database: str
    distance: float
    own_distance: float


def histogram(values: Float[np.ndarray, "i j k"]) -> Histogram | None:
    """The shares of a sequence's voxels that are not 0 in each bin of their z-scores; None if they have no contrast."""
    inside = values[values != 0].astype(np.float32)
    std = float(inside.std()) if inside.size else 0.0
    if not std > 0:
        return None
    scores = np.clip((inside - inside.mean()) / std, -LIMIT, LIMIT)
    counts, _ = np.histogram(scores, BINS, (-LIMIT, LIMIT))
    return np.asarray(counts / inside.size)


def distance(first: Histogram, second: Histogram) -> float:
    """Half the sum of the absolute differences."""
    return float(np.abs(first - second).sum() / 2)


def suspect(contrasts: Contrasts, name: str, scan: Histogram, margin: float | None = None) -> Suspect | None:
    """Whether a scan looks like another sequence than the one it is said to be; None if it does not.

    A sequence that the model did not learn from cannot be judged.
    """
    nearest = {
        sequence: min((distance(scan, mean), database) for database, mean in means.items())
        for sequence, means in contrasts.means.items()
        if means
    }
    if name not in nearest or len(nearest) < 2:
        return None
    own, _ = nearest.pop(name)
    like = min(nearest, key=lambda sequence: nearest[sequence])
    other, database = nearest[like]
    if own - other <= (contrasts.margin if margin is None else margin):
        return None
    return Suspect(name, like, database, other, own)


def contrasts_of(scans: Iterable[tuple[str, str, str, Histogram]]) -> Contrasts:
    """The mean histograms of scans, and the margin that `SHARE` of these scans keep.

    Each scan is compared with means to which its own case does not belong. A margin below 0 becomes 0.

    Args:
        scans: database, case, sequence and histogram.
    """
    listed = list(scans)
    groups: dict[tuple[str, str], list[tuple[str, Histogram]]] = {}
    for database, case, name, scan in listed:
        groups.setdefault((name, database), []).append((case, scan))
    gaps = []
    for database, case, name, scan in listed:
        others = _means(groups, without=(database, case))
        found = suspect(Contrasts(others, 0.0), name, scan, margin=-np.inf)
        gaps += [found.own_distance - found.distance] if found else []
    return Contrasts(_means(groups), max(0.0, float(np.quantile(gaps, SHARE))) if gaps else 0.0)


def _means(
    groups: Mapping[tuple[str, str], list[tuple[str, Histogram]]], without: tuple[str, str] = ("", "")
) -> dict[str, dict[str, Histogram]]:
    means: dict[str, dict[str, Histogram]] = {}
    for (name, database), scans in groups.items():
        kept = [scan for case, scan in scans if (database, case) != without]
        if kept:
            means.setdefault(name, {})[database] = np.mean(kept, axis=0)
    return means
