"""Temperatures are found again, and thresholds are where they tell poor answers from others."""

import math
from dataclasses import replace

import numpy as np
import pytest

from multiseg.evaluation.temperature_fit import (
    GRID,
    Sample,
    cell_errors,
    cell_losses,
    chosen_voxels,
    fit_by_number,
    fitted_temperatures,
    look_threshold,
    sampled_expected_dice,
)
from multiseg.labels import IGNORE, LabelSpace
from multiseg.models.calibration_record import UNCALIBRATED

SPACE = LabelSpace()
SEQUENCES = ("FLAIR", "T1")


def sample(p: np.ndarray, truth: np.ndarray, num: int = 1, database: str = "ms", weights: object = None) -> Sample:
    weights = np.ones(len(p), np.float32) if weights is None else np.array(weights, np.float32)
    predicted = (p >= 0.5).astype(np.uint8)
    return Sample(database, SEQUENCES[:num], p[None].astype(np.float32), truth.astype(np.uint8), predicted, weights,
                  np.array([True]), np.array([0.5]))  # fmt: skip


def overconfident(factor: float, seed: int = 0, num: int = 1) -> Sample:
    """Voxels whose logits are so many times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, 20_000)
    truth = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
    return sample(1 / (1 + np.exp(-factor * logits)), truth, num)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_factor_of_the_logits_is_found(factor: float) -> None:
    assert fitted_temperatures([overconfident(factor)], SPACE) == pytest.approx((factor, factor), rel=0.12)


def test_each_number_of_sequences_has_its_own() -> None:
    one, two = fit_by_number([overconfident(2.0, num=1), overconfident(4.0, 1, num=2)], SPACE)
    assert (one.num_sequences, two.num_sequences) == (1, 2)
    assert (one.temperatures.outside, two.temperatures.outside) == pytest.approx((2, 4), rel=0.12)
    assert one.ece_after < one.ece_before / 4
    assert (one.num_cells, one.num_lower) == (1, 1)


def test_without_a_structure_nothing_is_fitted() -> None:
    p = np.full(100, 0.2)
    assert fitted_temperatures([sample(p, np.zeros(100))], SPACE) is None
    assert fit_by_number([sample(p, np.zeros(100))], SPACE) == ()


def test_a_fit_that_ends_at_its_bound_says_so() -> None:
    p, truth = np.array([0.45, 0.55]), np.array([0, 1])  # always right: the colder the better
    (fit,) = fit_by_number([sample(p, truth)], SPACE)
    assert fit.is_at_bound
    assert not fit_by_number([overconfident(2.0)], SPACE)[0].is_at_bound


def test_a_cell_that_is_sure_and_wrong_does_not_decide_alone() -> None:
    # In one database every second answer is wrong with full confidence, which only a very high temperature would mend.
    wrong = sample(np.full(1000, 0.999), np.arange(1000) % 2, database="other")
    many = [replace(overconfident(2.0, seed), database=f"ms {seed}") for seed in range(4)]
    both = fitted_temperatures([*many, wrong], SPACE)
    assert both == pytest.approx((2, 2), rel=0.3)


def test_where_no_temperature_helps_they_stay_one() -> None:
    p = np.repeat([0.1, 0.9], 1000)
    right = sample(p, np.concatenate([np.arange(1000) % 10 == 0, np.arange(1000) % 10 > 0]))
    (fit,) = fit_by_number([right], SPACE)
    assert fit.temperatures == UNCALIBRATED
    assert (fit.num_lower, fit.ece_after) == (0, fit.ece_before)
    assert 1 in GRID


def test_the_error_of_a_cell_by_hand() -> None:
    samples = [
        sample(np.array([0.8, 0.25, 0.0001]), np.array([1, 0, 1]), weights=[1, 3, 9]),
        sample(np.array([0.8]), np.array([0])),
        sample(np.array([0.8]), np.array([0]), num=2),
    ]
    errors = cell_errors(samples, SPACE, UNCALIBRATED)
    assert errors == {
        ("ms", "lesion", ("FLAIR",)): pytest.approx((abs(1.6 - 1) + abs(0.75 - 0)) / 5),
        ("ms", "lesion", ("FLAIR", "T1")): pytest.approx(0.8),
    }


def test_the_loss_of_a_cell_by_hand() -> None:
    samples = [
        sample(np.array([0.8, 0.25]), np.array([1, 0]), weights=[1, 3]),
        sample(np.array([0.5]), np.array([1])),
        sample(np.array([0.9]), np.array([1]), num=2),
    ]
    assert cell_losses(samples, SPACE, UNCALIBRATED) == {
        ("ms", ("FLAIR",)): pytest.approx(-(math.log(0.8) + 3 * math.log(0.75) + math.log(0.5)) / 5),
        ("ms", ("FLAIR", "T1")): pytest.approx(-math.log(0.9)),
    }


def test_the_loss_decides_where_the_error_does_not() -> None:
    # Voxels with so small a probability count for no calibration error, but one in twenty of them is true.
    p = np.array([*[0.0005] * 100, *[0.9] * 100])
    one = sample(p, np.array([*(np.arange(100) % 20 == 0), *(np.arange(100) % 10 > 0)]))
    found = fitted_temperatures([one], SPACE)
    assert found.outside > 1.5
    assert found.inside == 1


def test_a_case_counts_only_for_what_it_is_annotated_for() -> None:
    space = LabelSpace.of(("lesion", "tissue:GM"))
    p = np.array([[0.3], [0.5]], np.float32)
    only_lesion = Sample("ms", ("T1",), p, np.array([0], np.uint8), np.array([2], np.uint8), np.ones(1, np.float32),
                         np.array([True, False]), np.full(2, math.nan))  # fmt: skip
    assert cell_errors([only_lesion], space, UNCALIBRATED) == {("ms", "lesion", ("T1",)): pytest.approx(0.3)}
    assert cell_losses([only_lesion], space, UNCALIBRATED) == {("ms", ("T1",)): pytest.approx(-math.log(0.7))}


def test_samples_keep_small_structures_whole_and_stand_for_the_brain() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((1, 30, 30, 30)).astype(np.float32) * 0.01
    target, predicted = np.zeros(p.shape[1:], np.uint8), np.zeros(p.shape[1:], np.uint8)
    target[:2, :2, :2], predicted[1, :2, :2], target[-1] = 1, 1, IGNORE
    brain = np.ones(target.shape, bool)
    brain[10] = False
    voxels, weights = chosen_voxels(p, target, predicted, brain, 1000)
    assert len(voxels) <= 1000
    assert weights.sum() == pytest.approx((brain & (target != IGNORE)).sum())
    assert set(np.flatnonzero(target == 1)) <= set(voxels)
    assert (target.ravel()[voxels] != IGNORE).all()
    assert brain.ravel()[voxels].all()
    nowhere, none = chosen_voxels(p, target, predicted, np.zeros_like(brain), 1000)
    assert len(nowhere) == len(none) == 0


def test_the_expected_dice_of_a_sample_is_that_of_its_voxels() -> None:
    p = np.array([0.8, 0.6, 0.2, 0.0005])
    one = sample(p, np.zeros(4), weights=[1, 1, 5, 9])
    assert sampled_expected_dice(one, SPACE, UNCALIBRATED) == pytest.approx([2 * 1.4 / (2 + 1.4 + 1)], rel=1e-6)


def test_the_threshold_tells_poor_answers_from_others() -> None:
    expected, true = [0.2, 0.3, 0.6, 0.7, 0.8], [0.1, 0.4, 0.3, 0.7, 0.9]
    assert look_threshold(expected, true, 0.5) == pytest.approx(0.65)
    assert look_threshold(expected, [0.9] * 5, 0.5) == 0.2
    assert look_threshold(expected, [0.1] * 5, 0.5) == pytest.approx(0.8)
    assert look_threshold(expected, [0.1] * 5, 0.5) > 0.8
    assert look_threshold([math.nan, 0.4], [0.1, math.nan], 0.5) == 0.5
    # One of two poor answers looks good: to find it, too, would flag both others.
    assert look_threshold([0.1, 0.4, 0.5, 0.9], [0.0, 1.0, 1.0, 0.0], 0.5) == pytest.approx(0.25)
