"""Lesions against values worked by hand, and against a slow reading of their definition."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from multiseg.errors import UsageError
from multiseg.evaluation.comparison import ScoringOptions
from multiseg.evaluation.empty_masks import BRATS
from multiseg.evaluation.lesions import (
    RULES,
    SIZES,
    LesionRule,
    find_lesions,
    lesion_metrics,
    no_lesion_metrics,
    summarise_lesions,
)
from multiseg.evaluation.metrics import case_metrics
from multiseg.types import Mask

CUBE_MM = (1.0, 1.0, 1.0)
SHAPE = (24, 10, 10)
EVERY = LesionRule(0, 0.0)
DIAGONAL = math.hypot(*SHAPE)


def bars(*bars: tuple[int, int]) -> Mask:
    """Bars of one voxel's width along i, from the first number to below the second."""
    mask = np.zeros(SHAPE, dtype=bool)
    for start, stop in bars:
        mask[start:stop, 5, 5] = True
    return mask


def metrics(predicted: Mask, truth: Mask, rule: LesionRule = EVERY) -> dict[str, float | int]:
    return lesion_metrics(find_lesions(predicted, truth, CUBE_MM, rule))


def test_found_missed_and_false_lesions_by_hand() -> None:
    found = metrics(bars((0, 2), (10, 12), (14, 16)), bars((0, 4), (20, 24)))
    assert (found["num_lesions"], found["num_lesions_found"], found["num_lesions_false"]) == (2, 1, 2)
    assert found["lesion_f1"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))
    assert found["lesion_dice"] == pytest.approx((2 * 2 / (2 + 4) + 0 + 0 + 0) / (2 + 2))
    # The found lesion has distances 0, 0, 1, 2 to its answer, whose 95th percentile is 1.85.
    assert found["lesion_hd95_mm"] == pytest.approx((1.85 + DIAGONAL + 2 * DIAGONAL) / 4)


def test_components_whose_dilations_touch_are_one_lesion() -> None:
    truth = bars((0, 3), (5, 8))  # two voxels between them
    numbers = [metrics(truth, truth, LesionRule(times, 0.0))["num_lesions"] for times in (0, 1)]
    assert numbers == [2, 1]
    apart = bars((0, 3), (6, 9))  # three: a voxel remains between the dilations
    assert metrics(apart, apart, LesionRule(1, 0.0))["num_lesions"] == 2
    assert metrics(apart, apart, LesionRule(2, 0.0))["num_lesions"] == 1
    assert metrics(apart, apart, RULES["brats-gli"])["num_lesions"] == 0


def test_a_prediction_beside_a_lesion_belongs_to_it_within_the_dilation() -> None:
    truth, beside = bars((0, 3)), bars((3, 6))
    assert metrics(beside, truth, LesionRule(0, 0.0))["num_lesions_false"] == 1
    found = metrics(beside, truth, LesionRule(1, 0.0))
    assert (found["num_lesions_found"], found["num_lesions_false"], found["lesion_dice"]) == (1, 0, 0.0)
    assert found["lesion_hd95_mm"] < 4


def test_a_component_may_belong_to_several_lesions_and_a_lesion_to_several_components() -> None:
    long, two = bars((0, 10)), bars((0, 2), (8, 10))
    found = metrics(long, two)
    assert (found["num_lesions_found"], found["num_lesions_false"]) == (2, 0)
    assert found["lesion_dice"] == pytest.approx(2 * 2 / (10 + 2))
    found = metrics(two, long)
    assert (found["num_lesions_found"], found["lesion_f1"]) == (1, 1.0)
    assert found["lesion_dice"] == pytest.approx(2 * 4 / (10 + 4))


def test_corners_connect() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[[3, 4, 5], [3, 4, 5], [3, 4, 5]] = True
    assert metrics(mask, mask)["num_lesions"] == 1


@pytest.mark.parametrize(("rule", "numbers"), [("ours", [0, 1, 1]), ("brats-met", [0, 1, 1])])
def test_small_lesions_are_left_out_and_what_meets_them_is_not_false(rule: str, numbers: list[int]) -> None:
    for length, number in zip((2, 3, 4), numbers, strict=True):
        truth = bars((0, length))
        found = metrics(truth, truth, RULES[rule])
        assert (found["num_lesions"], found["num_lesions_false"]) == (number, 0)
        assert found["num_lesions"] or math.isnan(found["lesion_f1"])
    assert metrics(bars((0, 2)), bars(), RULES[rule])["num_lesions_false"] == 1


def test_lesions_of_exactly_the_volume_count_by_our_rule_only() -> None:
    assert RULES["ours"].counts(np.array([2.999, 3.0, 3.0 - 1e-9])).tolist() == [False, True, True]
    assert RULES["brats-gli"].counts(np.array([49.0, 50.0, 50.0 + 1e-9, 51.0])).tolist() == [False, False, False, True]


def test_the_voxel_size_counts() -> None:
    truth = bars((0, 2))
    spacing_mm = (1.0, 1.0, 2.0)
    assert find_lesions(truth, truth, spacing_mm, RULES["ours"]).volume_mm3.tolist() == [4.0]
    missed = find_lesions(bars(), truth, spacing_mm, RULES["ours"])
    assert missed.hd95_mm.tolist() == pytest.approx([math.hypot(24, 10, 20)])


def test_cases_without_lesions() -> None:
    nothing, some = bars(), bars((0, 4))
    clean, alarm = metrics(nothing, nothing), metrics(some, nothing)
    assert all(math.isnan(clean[name]) for name in ("lesion_f1", "lesion_dice", "lesion_hd95_mm"))
    assert (alarm["lesion_f1"], alarm["lesion_dice"]) == (0.0, 0.0)
    assert alarm["lesion_hd95_mm"] == pytest.approx(DIAGONAL)
    as_brats = lesion_metrics(find_lesions(nothing, nothing, CUBE_MM, EVERY), BRATS)
    assert [as_brats[name] for name in ("lesion_f1", "lesion_dice", "lesion_hd95_mm")] == [1.0, 1.0, 0.0]
    left_out = lesion_metrics(find_lesions(nothing, bars((0, 1)), CUBE_MM, RULES["brats-gli"]), BRATS)
    assert left_out["lesion_dice"] == 1.0


def test_detection_by_size_is_that_of_all_cases_together() -> None:
    truth = np.zeros((40, 40, 40), dtype=bool)
    truth[:12, :12, :12], truth[0, 0, 20], truth[20:24, 20:24, 20:24], truth[20:23, 20, 0] = True, True, True, True
    predicted = truth.copy()
    predicted[20:24, 20:24, 20:24] = False
    first = lesion_metrics(find_lesions(predicted, truth, CUBE_MM, EVERY))
    assert [first[f"num_lesions_{size}"] for size in SIZES] == [2, 1, 0, 1]
    assert [first[f"num_found_{size}"] for size in SIZES] == [2, 0, 0, 1]
    second = lesion_metrics(find_lesions(truth & False, truth, CUBE_MM, EVERY))
    rows = {name: [float(first[name]), float(second[name])] for name in first}
    found = summarise_lesions(rows)
    assert [found[f"detected_{size}"] for size in SIZES][:2] == [0.5, 0.0]
    assert math.isnan(found["detected_100_to_1000_mm3"])
    assert found["detected_over_1000_mm3"] == 0.5
    assert found["num_lesions"] == 8
    assert found["lesion_sensitivity_pooled"] == 3 / 8
    assert found["lesion_f1_pooled"] == pytest.approx(2 * 3 / (2 * 3 + 5))
    assert found["lesion_f1"] == pytest.approx((2 * 3 / (2 * 3 + 1) + 0) / 2)


def test_what_is_no_lesion_has_no_counts() -> None:
    rows = {name: [value, value] for name, value in no_lesion_metrics().items()}
    assert all(math.isnan(value) for value in summarise_lesions(rows).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance_mm": -1.0}, "the tolerance is -1.0 mm"),
        ({"tolerance_mm": math.nan}, "the tolerance is nan mm"),
        ({"lesion_rule": "brats"}, "no lesion rule 'brats': give one of ours, brats-gli"),
        ({"empty": "zero"}, "no rule for empty masks 'zero': give one of undefined, brats"),
    ],
)
def test_unknown_rules_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScoringOptions(**options)


def _slow(predicted: Mask, truth: Mask, spacing_mm: tuple[float, float, float], rule: LesionRule) -> tuple[float, ...]:
    """The definition read literally: one mask for each lesion, on the whole grid. TP, FN, FP, Dice, HD95."""
    growth = np.array([[[abs(i) + abs(j) + abs(k) < 3 for k in (-1, 0, 1)] for j in (-1, 0, 1)] for i in (-1, 0, 1)])
    everything = np.ones((3, 3, 3))

    def grown(mask: Mask) -> Mask:
        return np.asarray(ndimage.binary_dilation(mask, growth, iterations=rule.dilation)) if rule.dilation else mask

    parts, number = ndimage.label(grown(truth), everything)
    answers, num_answers = ndimage.label(predicted, everything)
    dice, hd95, found, met_any = [], [], 0, set()
    for index in range(1, number + 1):
        lesion = truth & (parts == index)
        met = set(answers[grown(lesion)]) - {0}
        met_any |= met
        if round(lesion.sum() * math.prod(spacing_mm), 6) <= rule.volume_mm3:
            continue
        scores = case_metrics(np.isin(answers, list(met)), lesion, spacing_mm)
        dice.append(scores.dice)
        hd95.append(scores.hd95_mm)
        found += bool(met)
    num_false = num_answers - len(met_any)
    diagonal = math.hypot(*(n * mm for n, mm in zip(truth.shape, spacing_mm, strict=True)))
    total = len(dice) + num_false
    return (found, len(dice) - found, num_false, sum(dice) / total, (sum(hd95) + num_false * diagonal) / total)


@pytest.mark.slow
@pytest.mark.parametrize("dilation", [0, 1, 3])
def test_the_fast_way_agrees_with_the_definition(dilation: int) -> None:
    rng = np.random.default_rng(dilation)
    for _ in range(15):
        shape = tuple(int(n) for n in rng.integers(8, 26, 3))
        spacing_mm = tuple(float(mm) for mm in rng.uniform(0.5, 4.0, 3))
        noise, other = (ndimage.gaussian_filter(rng.normal(size=shape), 1.2) for _ in range(2))
        truth, predicted = noise > np.percentile(noise, 93), (noise + other) > np.percentile(noise + other, 93)
        rule = LesionRule(dilation, float(rng.uniform(0, 8 * math.prod(spacing_mm))))
        found = lesion_metrics(find_lesions(predicted, truth, spacing_mm, rule))
        ours = (
            *(found["num_lesions_found"], found["num_lesions"] - found["num_lesions_found"]),
            *(found["num_lesions_false"], found["lesion_dice"], found["lesion_hd95_mm"]),
        )
        assert ours == pytest.approx(_slow(predicted, truth, spacing_mm, rule))


def test_missing_everything_is_never_better() -> None:
    rng = np.random.default_rng(5)
    for density, share in product((0.02, 0.1), (0.1, 0.9)):
        truth, predicted = rng.random((9, 9, 9)) < density, rng.random((9, 9, 9)) < density * share
        some, none = (metrics(mask, truth) for mask in (predicted, predicted & False))
        assert none["lesion_f1"] <= some["lesion_f1"]
        assert none["lesion_dice"] <= some["lesion_dice"]
        assert none["lesion_hd95_mm"] >= some["lesion_hd95_mm"]
