"""Paired differences: worked by hand, and what must hold for any two arms."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.errors import DataError
from multiseg.experiments.comparisons import mean_by_database, paired_difference

scores = st.floats(0, 1, width=32)


def arm(values: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Rows of an arm from the Dice of each (database, case), seed by seed."""
    return pd.DataFrame(
        {"database": database, "case": case, "seed": seed, "dice": dice}
        for (database, case), dices in values.items()
        for seed, dice in enumerate(dices)
    )


def test_worked_by_hand() -> None:
    first = arm({("a", "1"): [0.8, 0.6], ("a", "2"): [0.5, 0.5], ("b", "1"): [0.9, 0.7]})
    second = arm({("a", "1"): [0.6, 0.6], ("a", "2"): [0.6, 0.6], ("b", "1"): [0.4, 0.4]})
    found = paired_difference(first, second, "dice")
    # By case 0.7 - 0.6, 0.5 - 0.6 and 0.8 - 0.4; a: 0, b: 0.4; mean of databases 0.2 (of cases it would be 0.133).
    assert found.mean == pytest.approx(0.2)
    assert found.num_cases == 3
    # Seed 0: a (0.2 - 0.1) / 2, b 0.5; seed 1: a (0 - 0.1) / 2, b 0.3.
    assert found.by_seed == pytest.approx((0.275, 0.125))
    assert math.isnan(found.low), "of two cases and of one there is nothing to draw again"
    assert math.isnan(found.high)


def test_a_seed_that_one_arm_lacks_counts_in_neither() -> None:
    first, second = arm({("a", "1"): [0.5, 0.1]}), arm({("a", "1"): [0.5]})
    assert (paired_difference(first, second, "dice").mean, paired_difference(second, first, "dice").mean) == (0, 0)


def test_five_cases_have_an_interval_and_four_have_none() -> None:
    first = arm({("a", str(n)): [0.1 * n] for n in range(5)})
    second = arm({("a", str(n)): [0.0] for n in range(5)})
    found = paired_difference(first, second, "dice")
    assert 0 < found.low < found.mean < found.high < 0.4
    fewer = paired_difference(first[first["case"] != "0"], second, "dice")
    assert math.isnan(fewer.low)
    assert fewer.mean == pytest.approx(0.25)


def test_the_interval_is_that_of_the_mean_of_many_cases() -> None:
    rng = np.random.default_rng(3)
    gaps = rng.normal(0.05, 0.1, 400)
    first = arm({("a", str(n)): [gap] for n, gap in enumerate(gaps)})
    second = arm({("a", str(n)): [0.0] for n in range(400)})
    found = paired_difference(first, second, "dice")
    half = 1.96 * gaps.std() / math.sqrt(400)
    assert found.low == pytest.approx(gaps.mean() - half, abs=0.0008)
    assert found.high == pytest.approx(gaps.mean() + half, abs=0.0008)


def test_a_case_that_one_arm_leaves_undefined_counts_in_neither() -> None:
    first = arm({("a", "1"): [0.8], ("a", "2"): [math.nan], ("a", "3"): [0.1], ("b", "1"): [math.nan]})
    second = arm({("a", "1"): [0.6], ("a", "2"): [0.1], ("b", "1"): [0.3]})
    found = paired_difference(first, second, "dice")
    assert (found.mean, found.num_cases) == (pytest.approx(0.2), 1)
    with pytest.raises(DataError, match="no case in common for which dice"):
        paired_difference(first[first["database"] == "b"], second, "dice")


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(scores, scores), min_size=5, max_size=7),
    st.lists(st.tuples(scores, scores), min_size=5, max_size=7),
)
def test_the_other_way_round_is_the_negative_and_a_shift_moves_all(
    ones: list[tuple[float, float]], others: list[tuple[float, float]]
) -> None:
    pairs = {("a", str(n)): pair for n, pair in enumerate(ones)} | {("b", str(n)): p for n, p in enumerate(others)}
    first = arm({key: [pair[0]] for key, pair in pairs.items()})
    second = arm({key: [pair[1]] for key, pair in pairs.items()})
    there, back = paired_difference(first, second, "dice"), paired_difference(second, first, "dice")
    assert there.low - 1e-9 <= there.mean <= there.high + 1e-9
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), abs=1e-6)
    moved = paired_difference(first.assign(dice=first["dice"] + 1), second, "dice")
    assert (moved.mean, moved.low, moved.high) == pytest.approx((there.mean + 1, there.low + 1, there.high + 1))


def test_seeds_are_averaged_before_cases() -> None:
    rows = arm({("a", "1"): [0.2, 0.4], ("a", "2"): [0.9, math.nan]})
    assert mean_by_database(rows, "dice").to_dict() == {"a": pytest.approx(0.6)}
