from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from multiseg.loaders.chance import Chance

keys = st.integers(0, 2**63 - 1)


def test_a_choice_worked_by_hand():
    # The digest of 5 and 7, 8 bytes each, as a fraction in [0, 1): its place among six, and what is left of it.
    digest = blake2b(bytes([5, *[0] * 7, 7, *[0] * 7])).digest()
    first, rest = divmod(int.from_bytes(digest, "little") * 6, 2**512)
    chance = Chance(5, 7)
    assert chance.below(6) == first
    assert chance.below(10) == rest * 10 // 2**512


@given(keys, keys, st.lists(st.integers(1, 2**40), min_size=1, max_size=8))
def test_choices_are_a_function_of_the_keys_and_in_range(a, b, stops):
    one, other = Chance(a, b), Chance(a, b)
    drawn = [one.below(stop) for stop in stops]
    assert drawn == [other.below(stop) for stop in stops]
    assert all(0 <= value < stop for value, stop in zip(drawn, stops, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("step", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, -1), (2**32, 0, 0), (0, 0, 2**32)])
@pytest.mark.parametrize("skipped", [0, 12])
def test_neighbouring_keys_have_nothing_in_common(step, skipped):
    def drawn(key):
        chance = Chance(*key)
        for _ in range(skipped):
            chance.below(37)
        return chance.below(5)

    pairs = np.zeros((5, 5))
    for n in range(1500):
        key = (7, 3, 2 * n + 1)
        pairs[drawn(key), drawn([number + more for number, more in zip(key, step, strict=True)])] += 1
    assert chisquare(pairs.ravel()).pvalue > 0.01


def test_successive_choices_are_independent():
    pairs = np.zeros((5, 7))
    for n in range(3500):
        chance = Chance(0, 0, n)
        pairs[chance.below(5), chance.below(7)] += 1
    assert chisquare(pairs.ravel()).pvalue > 0.01


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 4000), (0.3, 1200)])
def test_events_happen_as_often_as_they_should(probability, expected):
    happened = sum(Chance(n).happens(probability) for n in range(4000))
    if expected in (0, 4000):
        assert happened == expected
    else:
        assert chisquare([happened, 4000 - happened], [expected, 4000 - expected]).pvalue > 0.01
