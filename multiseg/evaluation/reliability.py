"""How far probabilities can be believed: calibration error, Brier score, and the Dice that they let expect.

The voxels of the ECE are those of the brain to which the model, before any calibration, gives a probability above
`LEAST`: nearly all others are far from any lesion, and would make every model look well calibrated. A calibration does
not change which voxels these are, so the errors before and after it are of the same voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from multiseg.evaluation.metrics import means_and_deviations
from multiseg.types import Mask

LEAST = 0.001
NUM_BINS = 15
_MEANS = ("ece", "ece_uncalibrated", "brier", "expected_dice")
COLUMNS = (*_MEANS, "look_at_this")
BINS = "bins"
"""Key of a row's bins, which are no column of cases.csv."""
KINDS = {"calibrated": "ece_pooled", "uncalibrated": "ece_uncalibrated_pooled"}
CELL = ["database", "label", "modalities", "learnt"]
_COUNTS = ("num_voxels", "sum_probability", "num_true")


@dataclass(frozen=True, eq=False)
class Confidence:
    """The probabilities of one answer, before and after the calibration.

    Attributes:
        raw, calibrated: by structure of the space.
        brain: of the sequences that were given.
    """

    raw: Float[np.ndarray, "label i j k"]
    calibrated: Float[np.ndarray, "label i j k"]
    brain: Mask


def bins_of(
    probability: Float[np.ndarray, " voxel"],
    truth: np.ndarray,
    weights: np.ndarray | None = None,
    before: Float[np.ndarray, "bin 3"] | None = None,
) -> Float[np.ndarray, "bin 3"]:
    """In `NUM_BINS` equal bins of probability: the number of voxels, the sum of their probabilities, and the number of
    true ones.

    Args:
        truth: of each voxel, true or false.
        weights: how many voxels each stands for; None for one.
        before: the bins of earlier voxels, which these join. A sum in parts is the same number to the last digit.
    """
    index = np.minimum((probability * NUM_BINS).astype(np.intp), NUM_BINS - 1)
    ones = np.ones(len(index)) if weights is None else weights
    columns: list[np.ndarray] = [ones, probability.astype(np.float64) * ones, truth * ones]
    if before is not None:  # as the first voxel of each bin, since bincount adds one voxel after the other
        index = np.concatenate([np.arange(NUM_BINS), index])
        columns = [np.concatenate([sums, column]) for sums, column in zip(before.T, columns, strict=True)]
    return np.stack([np.bincount(index, column, NUM_BINS) for column in columns], axis=1).astype(np.float64)


def bins_inside(probability: Float[np.ndarray, "i j k"], truth: Mask, counts: Mask) -> Float[np.ndarray, "bin 3"]:
    """The bins of the voxels that count, plane by plane, since those of a whole volume take much memory."""
    bins = np.zeros((NUM_BINS, 3))
    for p, is_true, counted in zip(probability, truth, counts, strict=True):
        bins = bins_of(p[counted], is_true[counted], before=bins)
    return bins


def ece_of(bins: Float[np.ndarray, "bin 3"]) -> float:
    """The expected calibration error; NaN without voxels.

    Naeini et al. 2015: the mean over voxels of |mean probability - share of true voxels| of their bin.
    """
    num, total, num_true = bins.T
    return float(np.abs(total - num_true).sum() / num.sum()) if num.sum() else math.nan


def expected_dice(predicted: Mask, probability: Float[np.ndarray, "i j k"], brain: Mask) -> float:
    """The Dice that the probabilities let expect; NaN where nothing is predicted and no probability is above `LEAST`.

    With P the predicted voxels and p the probabilities, where these are above `LEAST` in the brain:
        2 sum_P p / (|P| + sum p)
    the quotient of the expectations of 2 |P ∩ T| and of |P| + |T|. It is 0 where nothing is predicted.
    """
    counts = np.where(brain & (probability > LEAST), probability, 0)
    total = float(counts.sum(dtype=np.float64)) + float(np.count_nonzero(predicted))
    return 2 * float(counts[predicted].sum(dtype=np.float64)) / total if total else math.nan


def is_doubtful(expected: float, look_below: float) -> bool:
    """Whether a person should look at an answer with this expected Dice; an undefined one is not doubtful."""
    return expected < look_below


def confidence_row(
    confidence: Confidence, index: int, masks: tuple[Mask, Mask, Mask], look_below: float
) -> dict[str, Any]:
    """The columns of one structure, and its bins.

    Args:
        masks: what is predicted, what is true, and where both are looked at.
        look_below: the expected Dice below which a person should look.
    """
    predicted, truth, looked_at = masks
    inside = confidence.brain & looked_at
    p, raw = confidence.calibrated[index], confidence.raw[index]
    counts = inside & (raw > LEAST)
    both = [bins_inside(values, truth, counts) for values in (p, raw)]
    expected = expected_dice(predicted & inside, p, inside)
    return {
        "ece": ece_of(both[0]),
        "ece_uncalibrated": ece_of(both[1]),
        "brier": _brier(p, truth, inside),
        "expected_dice": expected,
        "look_at_this": float(is_doubtful(expected, look_below)),
        BINS: [one.tolist() for one in both],
    }


def _brier(probability: Float[np.ndarray, "i j k"], truth: Mask, inside: Mask) -> float:
    """The mean squared difference inside, plane by plane, since whole volumes in double precision take much memory."""
    num, total = int(np.count_nonzero(inside)), 0.0
    for p, is_true, counts in zip(probability, truth, inside, strict=True):
        total += float(np.square(p[counts].astype(np.float64) - is_true[counts]).sum())
    return total / num if num else math.nan


def no_confidence() -> dict[str, float]:
    """The columns of an answer without probabilities."""
    return dict.fromkeys(COLUMNS, math.nan)


def summarise_confidence(rows: Mapping[str, Sequence[float]]) -> dict[str, float | int]:
    """The means over cases with their standard deviations, and the number of cases that were flagged."""
    flags = np.array(rows["look_at_this"], dtype=float)
    flagged = math.nan if np.isnan(flags).all() else int(np.nansum(flags))
    return {**means_and_deviations(_MEANS, rows), "num_look_at_this": flagged}


def reliability_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The bins of all cases together: a row for each database, structure, subset, way of having learnt, calibration
    and bin that has a voxel.

    Args:
        rows: of cases, with `BINS`.
    """
    pooled: dict[tuple[str, ...], Any] = {}
    for row in rows:
        if BINS in row:
            key = tuple(str(row[name]) for name in CELL)
            pooled[key] = pooled.get(key, 0) + np.array(row[BINS])
    made = []
    for key, both in pooled.items():
        for kind, bins in zip(KINDS, both, strict=True):
            for number, (num, total, num_true) in enumerate(bins):
                if num:
                    made.append({
                        **dict(zip(CELL, key, strict=True)), "probabilities": kind,
                        "from": number / NUM_BINS, "to": (number + 1) / NUM_BINS, "num_voxels": int(num),
                        "mean_probability": total / num, "share_true": num_true / num,
                    })  # fmt: skip
    columns = [*CELL, "probabilities", "from", "to", "num_voxels", "mean_probability", "share_true"]
    return pd.DataFrame(made, columns=columns)


def joined_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The bins of several tables of `reliability_table` together."""
    key = [*CELL, "probabilities", "from", "to"]
    rows = pd.concat(tables, ignore_index=True)
    sums = rows.assign(
        mean_probability=rows["mean_probability"] * rows["num_voxels"],
        share_true=rows["share_true"] * rows["num_voxels"],
    )
    joined = sums.groupby(key, sort=False, as_index=False)[["num_voxels", "mean_probability", "share_true"]].sum()
    for name in ("mean_probability", "share_true"):
        joined[name] = joined[name] / joined["num_voxels"]
    return joined


def ece_of_table(table: pd.DataFrame) -> float:
    """The calibration error of the voxels of some rows of the table together, bin by bin; NaN without rows."""
    num = table["num_voxels"]
    gaps = (num * (table["mean_probability"] - table["share_true"])).groupby(table["from"]).sum()
    return float(gaps.abs().sum() / num.sum()) if len(table) else math.nan


def pooled_errors(table: pd.DataFrame) -> dict[tuple[str, ...], dict[str, float]]:
    """By cell (`CELL`) the calibration errors of the voxels of all its cases together."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for key, rows in table.groupby([*CELL, "probabilities"], sort=False):
        *cell, kind = map(str, key)
        found.setdefault(tuple(cell), {})[KINDS[kind]] = ece_of_table(rows)
    return found


def error_changes(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """In how many cells (database, structure and subset) the pooled error is lower, equal and higher with the
    calibration than without, by the way of having learnt."""
    records = []
    for learnt, rows in summary.dropna(subset=list(KINDS.values())).groupby("learnt", sort=True):
        change = np.sign(rows["ece_pooled"] - rows["ece_uncalibrated_pooled"])
        counts = {
            f"num_{name}": int((change == sign).sum()) for name, sign in (("lower", -1), ("equal", 0), ("higher", 1))
        }
        records.append({"learnt": learnt, "num_cells": len(rows), **counts})
    return records


def expected_and_true(cases: pd.DataFrame) -> list[dict[str, Any]]:
    """How well the expected Dice orders the true ones: Spearman's rho over cases and subsets, by structure, for all
    databases together ("") and for each."""
    records = []
    for (learnt, label), group in cases.groupby(["learnt", "label"], sort=False):
        parts = {"": group, **{str(name): rows for name, rows in group.groupby("database", sort=False)}}
        for database, every in parts.items():
            rows = every.dropna(subset=["expected_dice", "dice"])
            if rows.empty:
                continue
            rho = spearman(rows["expected_dice"].tolist(), rows["dice"].tolist())
            records.append({"learnt": learnt, "label": label, "database": database, "num_rows": len(rows),
                            "spearman": rho, "num_look_at_this": int(every["look_at_this"].sum())})  # fmt: skip
    return records


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN for fewer than three pairs, or where one side is constant."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    return float(np.corrcoef(pd.Series(first).rank(), pd.Series(second).rank())[0, 1])
