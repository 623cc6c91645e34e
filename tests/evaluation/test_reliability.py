"""Calibration error, Brier score and expected Dice, worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from multiseg.evaluation.reliability import (
    BINS,
    CELL,
    Confidence,
    bins_inside,
    bins_of,
    confidence_row,
    ece_of,
    error_changes,
    expected_and_true,
    expected_dice,
    joined_tables,
    pooled_errors,
    reliability_table,
    spearman,
)
from multiseg.evaluation.temperature import at_temperature
from multiseg.labels import LabelSpace
from multiseg.models.calibration_record import Calibration, Temperatures, look_below_of, temperatures_of

CALIBRATION = Calibration({1: Temperatures(2.0, 2.0)}, {"lesion": 0.9}, 0.5, {"ms": 1}, "val", "")


def voxels(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


def test_the_error_is_the_gap_of_each_bin_weighed_by_its_voxels() -> None:
    # Bin 1 (0 to 1/15): mean 0.02, none true. Bin 12: 0.75, one of two true. Bin 15: 1, true.
    bins = bins_of(np.array([0.02, 0.02, 0.75, 0.75, 1.0]), np.array([False, False, True, False, True]))
    assert bins[[0, 11, 14]] == pytest.approx(np.array([[2, 0.04, 0], [2, 1.5, 1], [1, 1, 1]]))
    assert ece_of(bins) == pytest.approx((2 * 0.02 + 2 * 0.25 + 0) / 5)
    assert math.isnan(ece_of(np.zeros((15, 3))))


def test_weighted_voxels_count_as_many() -> None:
    p, truth = np.array([0.2, 0.7]), np.array([False, True])
    assert (bins_of(p, truth, np.array([3.0, 1.0])) == bins_of(p.repeat([3, 1]), truth.repeat([3, 1]))).all()


def test_bins_in_parts_are_the_same_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    p, truth, counts = rng.random((9, 40, 30), np.float32), rng.random((9, 40, 30)) > 0.7, rng.random((9, 40, 30)) > 0.2
    counts[4] = False
    assert bins_inside(p, truth, counts).tolist() == bins_of(p[counts], truth[counts]).tolist()


def test_expected_dice_by_hand() -> None:
    p, brain = voxels(0.8, 0.6, 0.2, 0.0005, 0.9), voxels(1, 1, 1, 1, 0) > 0
    predicted = (p >= 0.5) & brain
    # 2 (0.8 + 0.6) / (2 + 0.8 + 0.6 + 0.2): neither what is below 0.001 nor what is outside the brain counts.
    assert expected_dice(predicted, p, brain) == pytest.approx(2 * 1.4 / 3.6)
    assert expected_dice(np.zeros_like(predicted), p, brain) == 0
    assert math.isnan(expected_dice(np.zeros_like(predicted), voxels(0, 0, 0, 0, 0), brain))


def test_the_expected_dice_of_calibrated_voxels_is_their_mean_dice() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.1, 0.5, (4000, 1, 1)).astype(np.float32)
    predicted, brain = p >= 0.5, np.ones(p.shape, bool)
    true = []
    for _ in range(40):
        truth = rng.random(p.shape) < p
        true.append(2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()))
    assert expected_dice(predicted, p, brain) == pytest.approx(np.mean(true), abs=0.01)


def test_a_row_of_a_case() -> None:
    raw = voxels(0.8, 0.1, 0.0005)[None]
    brain = np.ones((3, 1, 1), bool)
    scaled_probabilities = at_temperature(raw, LabelSpace(), temperatures_of(CALIBRATION, 1))
    confidence = Confidence(raw, scaled_probabilities, brain)
    truth = voxels(1, 0, 0) > 0
    row = confidence_row(confidence, 0, (raw[0] >= 0.5, truth, brain), look_below_of(CALIBRATION, "lesion"))
    scaled = np.array([2 / 3, 0.25, 0.02187])  # odds 4, 1/9 and 0.0005002, at T = 2
    # The third voxel is below 0.001 before the calibration: it is in neither error, though it is above after it.
    assert row["ece"] == pytest.approx((1 / 3 + 0.25) / 2, abs=1e-6)
    assert row["ece_uncalibrated"] == pytest.approx((0.2 + 0.1) / 2, abs=1e-6)
    assert row["brier"] == pytest.approx(((1 / 3) ** 2 + 0.25**2 + 0.02187**2) / 3, abs=1e-4)
    assert row["expected_dice"] == pytest.approx(2 * scaled[0] / (1 + scaled.sum()), abs=1e-4)
    assert row["look_at_this"] == 1
    ignored = voxels(1, 0, 1) > 0
    row = confidence_row(confidence, 0, (raw[0] >= 0.5, truth, ignored), look_below_of(CALIBRATION, "lesion"))
    assert row["ece_uncalibrated"] == pytest.approx(0.2, abs=1e-6)


def cell(case: str, p: float, num_true: int, database: str = "ms") -> dict[str, object]:
    """A row of a case of 10 voxels of one probability."""
    bins = bins_of(np.full(10, p), np.arange(10) < num_true).tolist()
    other = bins_of(np.full(10, 0.5), np.arange(10) < num_true).tolist()
    names = {"database": database, "case": case, "label": "lesion", "modalities": "T1", "learnt": ""}
    return {**names, BINS: [bins, other]}


def test_tables_of_parts_join_to_the_table_of_all() -> None:
    rows = [cell("a", 0.7, 9), cell("b", 0.7, 5), cell("c", 0.7, 7, "wmh")]
    joined = joined_tables([reliability_table(rows[:1]), reliability_table(rows[1:])])
    key = [*CELL, "probabilities", "from", "to"]
    expected = reliability_table(rows).sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(joined.sort_values(key, ignore_index=True)[list(expected)], expected)


def test_the_pooled_error_is_that_of_all_voxels() -> None:
    # Each case alone is off by 0.2, in different directions; together they are right.
    table = reliability_table([cell("a", 0.7, 9), cell("b", 0.7, 5), cell("c", 0.7, 7, "wmh")])
    errors = pooled_errors(table)
    assert errors["ms", "lesion", "T1", ""]["ece_pooled"] == pytest.approx(0, abs=1e-9)
    assert errors["ms", "lesion", "T1", ""]["ece_uncalibrated_pooled"] == pytest.approx(0.2)
    row = table.iloc[0]
    assert (row["from"], row["to"]) == pytest.approx((10 / 15, 11 / 15))
    assert (row["num_voxels"], row["mean_probability"], row["share_true"]) == pytest.approx((20, 0.7, 0.7))
    assert list(reliability_table([]).columns) == list(table.columns)


def test_cells_whose_error_fell_are_counted() -> None:
    summary = pd.DataFrame({
        "learnt": ["", "", "", "val", ""],
        "ece_pooled": [0.1, 0.3, 0.2, 0.1, math.nan],
        "ece_uncalibrated_pooled": [0.2, 0.2, 0.2, 0.3, math.nan],
    })  # fmt: skip
    held_out, val = error_changes(summary)
    assert held_out == {"learnt": "", "num_cells": 3, "num_lower": 1, "num_equal": 1, "num_higher": 1}
    assert val["num_lower"] == 1


def test_spearman_by_hand() -> None:
    assert spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert spearman([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(spearman([1.0, 2.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_expected_and_true_dice_are_compared_over_cases_and_subsets_of_each_way_of_having_learnt() -> None:
    cases = pd.DataFrame({
        "learnt": [""] * 4 + ["train"], "label": "lesion", "database": ["a", "a", "b", "b", "a"],
        "expected_dice": [0.1, 0.2, 0.3, math.nan, 0.9], "dice": [0.3, 0.2, 0.1, 0.5, 0.1],
        "look_at_this": [1.0, 1, 0, 0, 0],
    })  # fmt: skip
    held_out, *_ = expected_and_true(cases)
    assert held_out == {"learnt": "", "label": "lesion", "database": "", "num_rows": 3, "spearman": pytest.approx(-1),
                        "num_look_at_this": 2}  # fmt: skip
