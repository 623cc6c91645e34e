"""How long an update may be."""

from dataclasses import replace

import pytest
import torch
from fake_link import options

from multiseg.federation.centre.combine import longest, outliers
from multiseg.federation.plan import LocalOptions, PrivacyOptions
from multiseg.training.fit import FitOptions

SAID = replace(options("ash"), fit=FitOptions(learning_rate=0.01, clip_norm=2.0), local=LocalOptions(steps=10))


def test_adam_comes_to_no_more_however_gradients_grow() -> None:
    """Of growing gradients, which move a weight furthest; 4 numbers: 1.05 * 10 * 0.01 * 7.3 * 2 = 1.533."""
    assert longest(4, SAID) == pytest.approx(1.533)
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    for growth in (1.0, 1.5, 3.0, 10.0):
        weight.data.zero_()
        adam = torch.optim.Adam([weight], lr=0.01)
        for step in range(10):
            weight.grad = torch.full_like(weight, growth**step)
            adam.step()
        assert float(weight.norm().detach()) < longest(4, SAID)
    assert float(weight.norm().detach()) > longest(4, SAID) / 20


def test_sgd_is_bounded_by_its_clipped_gradients() -> None:
    """1.05 * 10 steps * 0.01 * a gradient of 2; nothing bounds it where gradients are not clipped."""
    plain = replace(SAID, local=LocalOptions(steps=10, optimiser="sgd"))
    assert longest(4, plain) == pytest.approx(0.21)
    assert longest(4, replace(plain, fit=replace(plain.fit, clip_norm=0.0))) == float("inf")


def test_a_clip_and_noise_bound_what_is_sent() -> None:
    """1.05 * (0.5 + 2 * 0.5 * (sqrt(100) + 8))."""
    private = replace(SAID, privacy=PrivacyOptions(clip=0.5, noise=2.0))
    assert longest(100, private) == pytest.approx(1.05 * 18.5)


def test_among_three_the_median_says_what_is_usual() -> None:
    found = outliers({"a": (1.0, 0.0), "b": (1.2, 0.0), "c": (30.0, 0.0)}, [], 20.0)
    assert list(found) == ["c"]
    assert found["c"].startswith("its update is 30 long, 25 times the median of the sites (1.2); the limit is")
    assert not outliers({"a": (1.0, 0.0), "b": (1.2, 0.0), "c": (23.0, 0.0)}, [], 20.0)
    assert not outliers({"a": (1.0, 0.0), "b": (1.2, 0.0), "c": (30.0, 0.0)}, [], 0.0)


def test_one_that_sends_next_to_nothing_does_not_make_liars_of_the_others() -> None:
    assert not outliers({"a": (1.0, 0.0), "b": (1.2, 0.0), "c": (1e-9, 0.0)}, [], 20.0)
    assert not outliers({"a": (1.0, 0.0), "b": (1e-9, 0.0)}, [], 20.0)
    assert not outliers({"a": (0.0, 0.0), "b": (0.0, 0.0), "c": (1.0, 0.0)}, [], 20.0)


def test_two_are_compared_with_the_longest_of_the_rounds_before() -> None:
    past = [(1.0, 0.0), (1e-9, 0.0)]
    found = outliers({"a": (3.0, 0.0), "b": (21.0, 0.0)}, past, 20.0)
    assert list(found) == ["b"]
    assert "21 times the longest of the rounds before (1)" in found["b"]
    assert not outliers({"a": (3.0, 0.0), "b": (1e6, 0.0)}, [], 20.0)


def test_running_statistics_are_compared_by_themselves() -> None:
    found = outliers({"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (1.0, 1e9)}, [], 20.0)
    assert found["c"].startswith("its change of running statistics is 1e+09 long")
