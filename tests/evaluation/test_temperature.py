"""Temperatures soften probabilities and never change an answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from multiseg.evaluation.decision import decide
from multiseg.evaluation.temperature import VOXELS_AT_ONCE
from multiseg.evaluation.temperature import at_temperature as at_temperatures
from multiseg.labels import LabelSpace
from multiseg.models.calibration_record import Temperatures

LESION = LabelSpace()
TISSUES = LabelSpace.of(("tissue:GM", "tissue:WM"))
SEVERAL = LabelSpace.of(("lesion", "tissue:GM", "tissue:WM"))
temperatures = st.floats(0.1, 10)


def at_temperature(p: np.ndarray, space: LabelSpace, temperature: float, inside: float = 0) -> np.ndarray:
    return at_temperatures(p, space, Temperatures(temperature, inside or temperature))


def softmax(seed: int, num_labels: int, num_voxels: int = 400) -> np.ndarray:
    """Probabilities [label i j k] without background, of logits with a standard deviation of 2."""
    logits = np.random.default_rng(seed).normal(0, 2, (num_labels + 1, num_voxels, 1, 1))
    p = np.exp(logits - logits.max(axis=0))
    return (p / p.sum(axis=0))[1:]


def test_one_structure_by_hand() -> None:
    p = np.array([0.0, 0.1, 0.5, 0.8, 1.0], np.float32)
    # The odds 1/9 and 4 at T = 2 are 1/3 and 2.
    assert at_temperature(p[None], LESION, 2.0)[0, :4] == pytest.approx([0, 0.25, 0.5, 2 / 3], rel=1e-6)
    assert at_temperature(p[None], LESION, 1.0) is not None
    assert at_temperature(p[None], LESION, 1.0)[0] == pytest.approx(p, abs=0)


@given(st.integers(0, 2**16), temperatures)
def test_one_structure_is_the_sigmoid_of_scaled_logits(seed: int, temperature: float) -> None:
    p = softmax(seed, 1)
    assert at_temperature(p, LESION, temperature) == pytest.approx(expit(logit(p) / temperature), abs=1e-6)


@given(st.integers(0, 2**16), temperatures)
def test_tissues_alone_are_the_softmax_of_scaled_logits(seed: int, temperature: float) -> None:
    p = softmax(seed, 2)
    raised = np.concatenate([1 - p.sum(axis=0, keepdims=True), p]) ** (1 / temperature)
    expected = (raised / raised.sum(axis=0))[1:]
    assert at_temperature(p, TISSUES, temperature) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 2**16), temperatures, temperatures, st.sampled_from([LESION, TISSUES, SEVERAL]))
def test_no_voxel_of_the_answer_changes(seed: int, temperature: float, inside: float, space: LabelSpace) -> None:
    p = softmax(seed, len(space.labels)).astype(np.float32)
    made = at_temperature(p, space, temperature, inside)
    brain = np.ones(p.shape[1:], bool)
    np.testing.assert_array_equal(decide(made, space, brain), decide(p, space, brain))
    assert ((made >= 0) & (made <= 1)).all()
    assert made.sum(axis=0).max() < 1 + 1e-5


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50), temperatures, temperatures)
def test_a_single_structure_keeps_every_side_of_a_half(values: list[float], temperature: float, inside: float) -> None:
    p = np.array([[*values, np.nextafter(np.float32(0.5), np.float32(0)), 0.5]], np.float32)
    np.testing.assert_array_equal(at_temperature(p, LESION, temperature, inside) >= 0.5, p >= 0.5)


def test_volumes_of_several_parts_are_scaled_whole() -> None:
    p = np.full((1, VOXELS_AT_ONCE + 3), 0.8, np.float32)
    assert (at_temperature(p, LESION, 2.0) == at_temperature(p[:, :1], LESION, 2.0)).all()


def test_inside_and_outside_have_their_own_temperature() -> None:
    p = np.array([[0.1, 0.8]], np.float32)
    assert at_temperature(p, LESION, 2.0, 0.5)[0] == pytest.approx([0.25, 16 / 17], rel=1e-5)  # odds 1/9, 4
    # The lesion loses: outside. Of the tissues GM wins against WM and background: inside.
    p = np.array([[0.2], [0.5], [0.1]], np.float32)
    rest = np.array([0.5, 0.1, 0.2]) ** 2
    lesion = 0.2**0.5 / (0.2**0.5 + 0.8**0.5)
    expected = [lesion, *((1 - lesion) * rest / rest.sum())[:2]]
    assert at_temperature(p, SEVERAL, 2.0, 0.5)[:, 0] == pytest.approx(expected, rel=1e-5)
