"""Metrics against values worked by hand, properties, the policy on empty masks, and MONAI."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from multiseg.errors import DataError
from multiseg.evaluation.empty_masks import BRATS
from multiseg.evaluation.metrics import CaseMetrics, case_metrics, summarise
from multiseg.types import Mask

CUBE_MM = (1.0, 1.0, 1.0)
UNEVEN_MM = (1.0, 2.0, 5.0)

spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)


def mask_of(shape: tuple[int, int, int], *voxels: tuple[int, int, int]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def filled_masks(shape: tuple[int, int, int]) -> st.SearchStrategy[Mask]:
    return arrays(bool, shape).filter(np.any)


pairs = array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(
    lambda shape: st.tuples(filled_masks(shape), filled_masks(shape))
)


def scores(metrics: CaseMetrics) -> tuple[float, ...]:
    return metrics.dice, metrics.sensitivity, metrics.precision, metrics.assd_mm, metrics.hd95_mm


def blob(seed: int, shape: tuple[int, int, int] = (20, 24, 18)) -> Mask:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 2.5)
    return np.asarray(smooth > np.percentile(smooth, 88))


def test_overlap_and_volumes_by_hand() -> None:
    truth = mask_of((4, 4, 4), (0, 0, 0), (1, 0, 0), (2, 0, 0))
    predicted = mask_of((4, 4, 4), (1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 0), (3, 2, 0))
    found = case_metrics(predicted, truth, UNEVEN_MM)
    assert found.dice == pytest.approx(2 * 2 / (3 + 5))
    assert found.sensitivity == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(2 / 5)
    assert found.truth_ml == pytest.approx(3 * 10 / 1000)
    assert found.predicted_ml == pytest.approx(5 * 10 / 1000)
    assert found.outcome == "both"


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 3.0), (1, 6.0), (2, 15.0)])
def test_two_voxels_three_steps_apart_are_three_spacings_apart(axis: int, expected_mm: float) -> None:
    there = [0, 0, 0]
    there[axis] = 3
    found = case_metrics(mask_of((5, 5, 5), (there[0], there[1], there[2])), mask_of((5, 5, 5), (0, 0, 0)), UNEVEN_MM)
    assert found.assd_mm == pytest.approx(expected_mm)
    assert found.hd95_mm == pytest.approx(expected_mm)
    assert (found.dice, found.sensitivity, found.precision) == (0.0, 0.0, 0.0)


def test_surface_distances_of_both_directions_are_pooled() -> None:
    # Truth is one voxel; the prediction is that voxel and two more, 5 and 10 mm away along k.
    truth = mask_of((3, 3, 3), (1, 1, 0))
    predicted = mask_of((3, 3, 3), (1, 1, 0), (1, 1, 1), (1, 1, 2))
    found = case_metrics(predicted, truth, UNEVEN_MM)
    assert found.assd_mm == pytest.approx((0 + 5 + 10 + 0) / 4)
    # Of 0, 5, 10 the 95th percentile stands at rank 0.95 * 2 = 1.9, that is 5 + 0.9 * 5; back it is 0.
    assert found.hd95_mm == pytest.approx(9.5)


def test_only_the_surface_counts() -> None:
    truth = np.zeros((7, 7, 7), dtype=bool)
    truth[1:6, 1:6, 1:6] = True
    predicted = truth.copy()
    predicted[2:5, 2:5, 2:5] = False  # a shell: its inner wall is the outer layer again, so nothing is new
    assert case_metrics(predicted, truth, CUBE_MM).assd_mm == 0.0
    predicted = truth.copy()
    predicted[3, 3, 3] = False  # a hole in the centre: its six walls are 1 voxel inside the true surface
    found = case_metrics(predicted, truth, CUBE_MM)
    assert found.assd_mm == pytest.approx(6 * 1 / ((98 + 6) + 98))


def test_the_end_of_the_grid_is_background() -> None:
    whole, corner = np.ones((3, 3, 3), dtype=bool), mask_of((3, 3, 3), (1, 1, 1))
    found = case_metrics(whole, corner, CUBE_MM)
    # From the 26 outer voxels to the centre: 6 faces, 12 edges, 8 corners; back: 1 to a face.
    expected = (6 * 1 + 12 * math.sqrt(2) + 8 * math.sqrt(3) + 1) / 27
    assert found.assd_mm == pytest.approx(expected)


def test_ignored_voxels_leave_both_masks() -> None:
    truth = mask_of((4, 4, 4), (0, 0, 0), (3, 3, 3))
    predicted = mask_of((4, 4, 4), (0, 0, 0), (3, 0, 0))
    looked_at = ~mask_of((4, 4, 4), (3, 3, 3), (3, 0, 0))
    found = case_metrics(predicted, truth, CUBE_MM, looked_at)
    assert scores(found) == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert found.truth_ml == found.predicted_ml == pytest.approx(0.001)
    nothing_left = case_metrics(predicted, truth, CUBE_MM, np.zeros_like(truth))
    assert nothing_left.outcome == "clean"


def test_arguments_stay_unchanged() -> None:
    predicted, truth = blob(1), blob(2)
    before = predicted.copy(), truth.copy()
    case_metrics(predicted, truth, CUBE_MM, looked_at=blob(3))
    np.testing.assert_array_equal(predicted, before[0])
    np.testing.assert_array_equal(truth, before[1])


def test_a_missed_lesion_costs_the_diagonal() -> None:
    shape = (3, 2, 4)  # 3, 4 and 20 mm
    found = case_metrics(mask_of(shape), mask_of(shape, (1, 1, 1)), UNEVEN_MM)
    assert found.outcome == "missed"
    assert (found.dice, found.sensitivity, found.precision) == (0.0, 0.0, 0.0)
    assert found.assd_mm == found.hd95_mm == pytest.approx(math.sqrt(9 + 16 + 400))
    assert (found.truth_ml, found.predicted_ml) == (pytest.approx(0.01), 0.0)


def test_a_false_alarm_has_precision_zero_and_nothing_else() -> None:
    shape = (3, 2, 4)
    found = case_metrics(mask_of(shape, (1, 1, 1)), mask_of(shape), UNEVEN_MM)
    assert found.outcome == "false alarm"
    assert found.precision == 0.0
    assert all(math.isnan(x) for x in (found.dice, found.sensitivity, found.assd_mm, found.hd95_mm))
    assert (found.truth_ml, found.predicted_ml) == (0.0, pytest.approx(0.01))


def test_a_clean_case_has_no_scores() -> None:
    found = case_metrics(mask_of((3, 3, 3)), mask_of((3, 3, 3)), CUBE_MM)
    assert found.outcome == "clean"
    assert all(math.isnan(score) for score in scores(found))
    assert (found.truth_ml, found.predicted_ml) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_spacing_that_is_no_size_is_refused(bad: float) -> None:
    mask = mask_of((3, 3, 3), (1, 1, 1))
    with pytest.raises(DataError, match=rf"\(1\.0, {bad}, 1\.0\) mm"):
        case_metrics(mask, mask, (1.0, bad, 1.0))


@pytest.mark.slow
@settings(deadline=None)
@given(pairs, spacings)
def test_swapping_the_masks_swaps_only_sensitivity_and_precision(
    pair: tuple[Mask, Mask], spacing_mm: tuple[float, float, float]
) -> None:
    there, back = case_metrics(*pair, spacing_mm), case_metrics(*pair[::-1], spacing_mm)
    assert there.dice == back.dice
    assert there.assd_mm == pytest.approx(back.assd_mm)
    assert there.hd95_mm == back.hd95_mm
    assert (there.sensitivity, there.precision) == (back.precision, back.sensitivity)


@pytest.mark.slow
@settings(deadline=None)
@given(pairs, spacings)
def test_a_mask_fits_itself(pair: tuple[Mask, Mask], spacing_mm: tuple[float, float, float]) -> None:
    assert scores(case_metrics(pair[0], pair[0].copy(), spacing_mm)) == (1.0, 1.0, 1.0, 0.0, 0.0)


@pytest.mark.slow
@settings(deadline=None)
@given(pairs, spacings, st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3))
def test_background_around_the_grid_changes_nothing(
    pair: tuple[Mask, Mask],
    spacing_mm: tuple[float, float, float],
    widths: tuple[tuple[int, int], ...],
) -> None:
    small = case_metrics(*pair, spacing_mm)
    large = case_metrics(np.pad(pair[0], widths), np.pad(pair[1], widths), spacing_mm)
    assert scores(large) == pytest.approx(scores(small))
    assert (large.truth_ml, large.predicted_ml) == (small.truth_ml, small.predicted_ml)


@pytest.mark.slow
@settings(deadline=None)
@given(pairs, st.floats(0.5, 3.0))
def test_distances_grow_with_the_voxels(pair: tuple[Mask, Mask], factor: float) -> None:
    near = case_metrics(*pair, UNEVEN_MM)
    far = case_metrics(*pair, (factor * 1.0, factor * 2.0, factor * 5.0))
    assert far.assd_mm == pytest.approx(factor * near.assd_mm)
    assert far.hd95_mm == pytest.approx(factor * near.hd95_mm)
    assert far.truth_ml == pytest.approx(factor**3 * near.truth_ml)


def test_means_leave_out_what_is_undefined_and_keep_what_was_missed() -> None:
    fits = CaseMetrics(0.8, 0.7, 0.9, 1.0, 4.0, 0.6, 6.0, 5.0, 4.4, -1.0, -20.0, "both")
    undefined = replace(fits, dice=math.nan, sensitivity=math.nan, assd_mm=math.nan, hd95_mm=math.nan)
    undefined = replace(undefined, surface_dice=math.nan, overlap_ml=0.0, volume_difference_percent=math.nan)
    missed = CaseMetrics(0.0, 0.0, 0.0, 101.0, 101.0, 0.0, 2.0, 0.0, 0.0, -2.0, -100.0, "missed")
    alarm = replace(undefined, precision=0.0, truth_ml=0.0, predicted_ml=3.0, outcome="false alarm")
    alarm = replace(alarm, volume_difference_ml=3.0)
    clean = replace(undefined, precision=math.nan, truth_ml=0.0, predicted_ml=0.0, outcome="clean")
    clean = replace(clean, volume_difference_ml=0.0)
    found = summarise([fits, missed, alarm, clean, clean])
    assert {name: value for name, value in found.items() if not name.endswith("_sd")} == pytest.approx(
        {
            "dice": 0.4,
            "sensitivity": 0.35,
            "precision": 0.3,
            "assd_mm": 51.0,
            "hd95_mm": 52.5,
            "surface_dice": 0.3,
            "truth_ml": 1.6,
            "predicted_ml": 1.6,
            "volume_difference_ml": 0.0,
            "volume_difference_percent": -60.0,
            # Of the voxels of all cases, those of the false alarm included.
            "dice_pooled": 2 * 4.4 / (8 + 8),
            "sensitivity_pooled": 4.4 / 8,
            "precision_pooled": 4.4 / 8,
            "num_cases": 5,
            "num_with_lesion": 2,
            "num_missed": 1,
            "num_lesion_free": 3,
            "num_false_alarms": 1,
        }
    )
    assert found["dice_sd"] == pytest.approx(0.8 / math.sqrt(2))
    assert found["precision_sd"] == pytest.approx(np.std([0.9, 0.0, 0.0], ddof=1))
    assert math.isnan(summarise([fits])["dice_sd"])


def test_a_bad_case_left_without_prediction_lowers_mean_precision() -> None:
    truth = mask_of((4, 4, 4), (0, 0, 0), (1, 0, 0))
    bad = mask_of(
        (4, 4, 4), (0, 0, 0), *((i, j, 3) for i in range(4) for j in range(4)), *((i, 3, 2) for i in range(4))
    )
    good, poor = case_metrics(truth, truth, CUBE_MM), case_metrics(bad, truth, CUBE_MM)
    assert poor.precision == pytest.approx(1 / 21)
    left_out = case_metrics(np.zeros_like(bad), truth, CUBE_MM)
    assert summarise([good, poor])["precision"] == pytest.approx(11 / 21)
    assert summarise([good, left_out])["precision"] == pytest.approx(1 / 2)


HIGHER_IS_BETTER = {"dice": True, "sensitivity": True, "precision": True, "assd_mm": False, "hd95_mm": False}
HIGHER_IS_BETTER |= {"surface_dice": True, "sensitivity_pooled": True}
cases = array_shapes(min_dims=3, max_dims=3, max_side=5).flatmap(
    lambda shape: st.lists(st.tuples(arrays(bool, shape), arrays(bool, shape)), min_size=1, max_size=4)
)


@pytest.mark.slow
@settings(deadline=None)
@given(cases, spacings, st.data())
def test_to_predict_nothing_where_a_lesion_is_never_improves_a_mean(
    pairs_of_cases: list[tuple[Mask, Mask]], spacing_mm: tuple[float, float, float], data: st.DataObject
) -> None:
    """Each pair is prediction and truth; any choice of the cases with a lesion loses its whole prediction."""
    emptied = [
        (np.zeros_like(predicted) if truth.any() and data.draw(st.booleans()) else predicted, truth)
        for predicted, truth in pairs_of_cases
    ]
    before, after = (
        summarise([case_metrics(predicted, truth, spacing_mm) for predicted, truth in some])
        for some in (pairs_of_cases, emptied)
    )
    for name, higher in HIGHER_IS_BETTER.items():
        old, new = (float(one[name]) if higher else -float(one[name]) for one in (before, after))
        assert math.isnan(old) == math.isnan(new), name
        assert math.isnan(old) or new <= old + 1e-9, (name, before, after)
    assert after["num_with_lesion"] == before["num_with_lesion"]


def test_a_summary_of_nothing_is_undefined_without_a_warning() -> None:
    summary = summarise([])
    assert all(math.isnan(summary[name]) for name in ("dice", "precision", "hd95_mm", "truth_ml"))
    assert summary["num_cases"] == summary["num_with_lesion"] == summary["num_lesion_free"] == 0
    clean = case_metrics(mask_of((2, 2, 2)), mask_of((2, 2, 2)), CUBE_MM)
    assert math.isnan(summarise([clean, clean])["dice"])


def test_the_surface_dice_is_the_share_within_the_tolerance() -> None:
    # Of four distances, 0 5 10 and back 0, three are within 5 mm, and two within less.
    truth = mask_of((3, 3, 3), (1, 1, 0))
    predicted = mask_of((3, 3, 3), (1, 1, 0), (1, 1, 1), (1, 1, 2))
    shares = [case_metrics(predicted, truth, UNEVEN_MM, None, mm).surface_dice for mm in (0.0, 4.9, 5.0, 10.0)]
    assert shares == [0.5, 0.5, 0.75, 1.0]
    rounded = (1.0, 2.0, float(np.nextafter(np.float32(5), np.float32(6))))
    assert case_metrics(predicted, truth, rounded, None, 5.0).surface_dice == 0.75


def test_volumes_differ_with_a_sign() -> None:
    small, large = mask_of((4, 4, 4), (0, 0, 0)), mask_of((4, 4, 4), (0, 0, 0), (1, 1, 1), (2, 2, 2))
    over, under = case_metrics(large, small, UNEVEN_MM), case_metrics(small, large, UNEVEN_MM)
    assert (over.volume_difference_ml, over.volume_difference_percent) == (pytest.approx(0.02), pytest.approx(200))
    assert (under.volume_difference_ml, under.volume_difference_percent) == (
        pytest.approx(-0.02),
        pytest.approx(-200 / 3),
    )
    alarm = case_metrics(small, mask_of((4, 4, 4)), UNEVEN_MM)
    assert alarm.volume_difference_ml == pytest.approx(0.01)
    assert math.isnan(alarm.volume_difference_percent)


def test_empty_masks_as_in_brats() -> None:
    shape = (3, 2, 4)
    nothing, voxel = mask_of(shape), mask_of(shape, (1, 1, 1))
    diagonal = math.sqrt(9 + 16 + 400)
    clean, alarm, missed = (
        case_metrics(predicted, truth, UNEVEN_MM, empty=BRATS)
        for predicted, truth in ((nothing, nothing), (voxel, nothing), (nothing, voxel))
    )
    assert (*scores(clean), clean.surface_dice) == (1.0, 1.0, 1.0, 0.0, 0.0, 1.0)
    assert (*scores(alarm), alarm.surface_dice) == pytest.approx((0.0, 0.0, 0.0, diagonal, diagonal, 0.0))
    assert (*scores(missed), missed.surface_dice) == pytest.approx((0.0, 0.0, 0.0, diagonal, diagonal, 0.0))
    assert summarise([clean, alarm])["dice"] == 0.5


def test_pooled_values_count_voxels_and_false_alarms() -> None:
    """Two cases of quite other sizes, and a false alarm; MONAI pools in the same way, see `test_monai_agrees`."""
    large, small = np.ones((4, 4, 4), dtype=bool), mask_of((4, 4, 4), (0, 0, 0))
    found = summarise([case_metrics(p, t, CUBE_MM) for p, t in ((large, large), (~small, small), (small, ~large))])
    assert found["dice"] == 0.5
    assert found["dice_pooled"] == pytest.approx(2 * 64 / (65 + 64 + 63 + 1))
    assert found["sensitivity_pooled"] == pytest.approx(64 / 65)
    assert found["precision_pooled"] == pytest.approx(64 / 128)
