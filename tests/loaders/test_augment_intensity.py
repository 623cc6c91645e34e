"""Changing intensities: values by hand, background kept."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.loaders.intensity_adjustment import (
    Adjustment,
    Bias,
    Coarse,
    Noise,
    adjust,
    with_bias,
    with_contrast,
    with_gamma,
    with_noise,
    with_resolution,
)
from multiseg.loaders.separable import coarsening

CPU = torch.device("cpu")
UNEVEN = np.arange(27.0).reshape(3, 3, 3)


def line(*values):
    return torch.tensor(values).reshape(-1, 1, 1)


def brain(seed=0, size=(10, 9, 8)):
    image = torch.randn(*size, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.4
    image[:3] = 0
    return image


adjustments = st.builds(
    Adjustment,
    gamma=st.none() | st.floats(0.5, 2),
    contrast=st.none() | st.floats(0.5, 2),
    brightness=st.none() | st.floats(-1, 1),
    bias=st.none() | st.builds(Bias, st.floats(0, 0.5), st.just(UNEVEN - 13)),
    blur_sigma_voxels=st.none() | st.floats(0.1, 3),
    coarse=st.none() | st.builds(Coarse, st.floats(1, 20), st.tuples(*[st.booleans()] * 3)),
    noise=st.none() | st.builds(Noise, st.floats(0, 1), st.integers(0, 2**62)),
)


@settings(max_examples=60, deadline=None)
@given(adjustments, st.integers(0, 100))
def test_the_background_stays_0_and_the_brain_finite(adjustment, seed):
    image = brain(seed)
    before = image.clone()
    done = adjust(image, adjustment)
    assert torch.equal(image, before)
    assert (done[:3] == 0).all()
    assert done.isfinite().all()
    assert (done[3:] != 0).float().mean() > 0.99


@settings(max_examples=20, deadline=None)
@given(adjustments)
def test_a_window_without_brain_and_one_of_a_single_value(adjustment):
    assert (adjust(torch.zeros(6, 5, 4), adjustment) == 0).all()
    assert adjust(torch.full((6, 5, 4), 1.5), adjustment).isfinite().all()


def test_gamma_by_hand():
    """-1, 0.5, 1 are 0, 0.75, 1 of the range; squared 0, 0.5625, 1; then mean 1/6 and deviation 0.8498 again."""
    done = with_gamma(line(-1.0, 0.5, 1.0, 0.0), 2.0).flatten()
    squared = np.array([0, 0.5625, 1])
    expected = (squared - squared.mean()) / squared.std() * np.std([-1, 0.5, 1]) + 1 / 6
    assert done[:3].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert done[3] == 0


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 2), st.integers(0, 100))
def test_gamma_keeps_order_mean_and_deviation(gamma, seed):
    image = brain(seed)
    done, inside = with_gamma(image, gamma), image != 0
    assert done[inside].mean().item() == pytest.approx(image[inside].mean().item(), abs=1e-4)
    assert done[inside].std().item() == pytest.approx(image[inside].std().item(), rel=1e-3)
    assert (done[inside][image[inside].argsort()].diff() >= 0).all()


def test_contrast_and_brightness_by_hand():
    """The brain's mean is 2: deviations double, then everything rises by a half."""
    assert with_contrast(line(1.0, 3.0, 0.0), 2.0, 0.5).flatten().tolist() == pytest.approx([0.5, 4.5, 0.0])


def test_a_bias_field_multiplies_what_lies_above_the_darkest():
    """Controls 0, 0, 1 along i are the field x^2 with x = 1/6, 1/2, 5/6, scaled to its largest value there."""
    controls = np.zeros((3, 3, 3))
    controls[2] = 1
    done = with_bias(line(-2.0, 1.0, 2.0), Bias(0.3, controls)).flatten()
    low = -2.0
    expected = [low, (1 - low) * math.exp(0.3 * 9 / 25) + low, (2 - low) * math.exp(0.3) + low]
    assert done.tolist() == pytest.approx(expected, abs=1e-5)


def test_outliers_do_not_stand_for_raw_zero():
    field = Bias(0.5, np.ones((3, 3, 3)))
    assert with_bias(line(-50.0, 1.0), field)[1].item() == pytest.approx(5 * math.exp(0.5) - 4, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.6), st.integers(0, 50))
def test_a_bias_field_has_the_strength_it_is_given(strength, seed):
    controls = np.random.default_rng(seed).standard_normal((3, 3, 3))
    image = torch.full((7, 8, 9), 1.0)
    image[0, 0, 0] = -1.0
    factors = (with_bias(image, Bias(strength, controls)) + 1) / 2
    inside = factors.flatten()[1:].log().abs()
    assert inside.max() <= strength + 1e-5
    assert inside.max() >= 0.6 * strength


def test_blur_by_hand():
    """A bright voxel between two others, at sigma 1: weights exp(-1/2) and exp(-2) of each end's own."""
    near, far = math.exp(-0.5), math.exp(-2)
    done = with_resolution(line(1.0, 5.0, 1.0), 1.0, None).flatten().tolist()
    assert done[0] == pytest.approx((1 + 5 * near + far) / (1 + near + far), rel=1e-5)
    assert done[1] == pytest.approx((5 + 2 * near) / (1 + 2 * near), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.none() | st.floats(0.2, 4), st.none() | st.builds(Coarse, st.floats(1, 8), st.tuples(*[st.booleans()] * 3)))
def test_resolution_leaves_a_flat_brain_flat(sigma, coarse):
    """So nothing bleeds in from the background, nor from beyond the window."""
    image = torch.full((9, 8, 7), 2.5)
    image[:4, :, 2:] = 0
    torch.testing.assert_close(with_resolution(image, sigma, coarse), image)


def test_coarse_voxels_by_hand():
    """Four voxels become two, their means at 0.5 and 2.5; read linearly at 1 and 2, and held at the ends."""
    matrix = coarsening(4, 2.0, CPU)
    means = np.array([3.0, 11.0])
    values = (matrix @ torch.tensor([2.0, 4.0, 10.0, 12.0])).tolist()
    assert values == pytest.approx([means[0], 0.75 * 3 + 0.25 * 11, 0.25 * 3 + 0.75 * 11, means[1]])
    assert coarsening(5, 2.0, CPU).sum(1).tolist() == pytest.approx([1] * 5)
    assert torch.equal(coarsening(5, 1.0, CPU), torch.eye(5))


def test_coarse_along_one_axis_leaves_the_others():
    image = torch.arange(24.0).reshape(2, 3, 4) + 1
    done = with_resolution(image, None, Coarse(4.0, (False, False, True)))
    torch.testing.assert_close(done, image.mean(2, keepdim=True).expand(2, 3, 4))


def test_noise_has_its_deviation_and_its_seed():
    image = torch.full((30, 30, 30), 1.0)
    image[:10] = 0
    one = with_noise(image, Noise(0.2, 7))
    assert (one - image)[10:].std().item() == pytest.approx(0.2, rel=0.03)
    assert abs((one - image)[10:].mean().item()) < 0.01
    assert (one[:10] == 0).all()
    assert torch.equal(one, with_noise(image, Noise(0.2, 7)))
    assert not torch.equal(one, with_noise(image, Noise(0.2, 8)))
    torch.testing.assert_close(with_noise(image, Noise(0.4, 7)) - image, 2 * (one - image))


def test_the_order_is_contrast_field_resolution_noise():
    whole = Adjustment(1.2, 1.1, 0.2, Bias(0.3, UNEVEN - 13), None, Coarse(2.0, (True, False, True)), Noise(0.1, 3))
    by_hand = with_bias(with_contrast(with_gamma(brain(), 1.2), 1.1, 0.2), whole.bias)
    by_hand = with_noise(with_resolution(by_hand, None, whole.coarse), whole.noise)
    assert torch.equal(adjust(brain(), whole), by_hand)


def test_blur_comes_before_coarse_voxels():
    """Along a line without background and far from its ends, where the mask changes nothing."""
    image = torch.randn(60, 1, 1, generator=torch.Generator().manual_seed(0)) + 9
    both = with_resolution(image, 0.8, Coarse(3.0, (True, False, False)))
    apart = with_resolution(with_resolution(image, 0.8, None), None, Coarse(3.0, (True, False, False)))
    torch.testing.assert_close(both[9:-9], apart[9:-9])
    swapped = with_resolution(with_resolution(image, None, Coarse(3.0, (True, False, False))), 0.8, None)
    assert (both - swapped).abs().max() > 0.01
