import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from hypothesis import given
from hypothesis import strategies as st

from multiseg.models.losses import (
    cross_entropy,
    log_probabilities,
    marginal,
    outside_brain,
    soft_dice_loss,
    unsearched_outside,
)

ALL = torch.tensor([[True, True]])


def voxels(*values):
    """[batch ... i j k] of one sample whose voxels lie along k."""
    return torch.tensor(values)[None, None, None]


def logits_of(*probabilities):
    """Logits [1 class 1 1 k] whose softmax gives these probabilities; one list a voxel."""
    return torch.tensor(probabilities).log().T[None, :, None, None]


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 3, 4, 5, generator=generator)
    target = torch.randint(0, 4, (2, 3, 4, 5), generator=generator).to(torch.uint8)
    return logits, target


def test_one_logit_is_binary_cross_entropy(random):
    logits, target = random[0][:, :1], (random[1] > 1).to(torch.uint8)
    ours = cross_entropy(log_probabilities(logits), target)
    torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(logits[:, 0], target.float()))


def test_several_logits_are_softmax_cross_entropy(random):
    logits, target = random
    ours = cross_entropy(marginal(log_probabilities(logits), torch.ones(2, 3, dtype=torch.bool)), target)
    torch.testing.assert_close(ours, F.cross_entropy(logits, target.long()))


def test_log_probabilities_stay_finite_and_in_float32():
    log_p = log_probabilities(torch.tensor([60000.0, -60000.0], dtype=torch.float16)[None, None, None, None])
    assert log_p.dtype == torch.float32
    assert log_p.isfinite().all()
    assert log_p[0, :, 0, 0, 0].tolist() == [-60000.0, 0.0]


def test_the_marginal_form_by_hand():
    log_p = log_probabilities(logits_of([0.5, 0.2, 0.3]))
    background = cross_entropy(marginal(log_p, torch.tensor([[True, False]])), voxels(0).to(torch.uint8))
    assert background.item() == pytest.approx(-math.log(0.5 + 0.3))
    lesion = cross_entropy(marginal(log_p, torch.tensor([[True, False]])), voxels(1).to(torch.uint8))
    assert lesion.item() == pytest.approx(-math.log(0.2))


def test_each_sample_has_its_own_annotations():
    log_p = log_probabilities(logits_of([0.5, 0.2, 0.3]).repeat(2, 1, 1, 1, 1))
    found = marginal(log_p, torch.tensor([[True, True], [False, False]])).exp()
    np.testing.assert_allclose(found[:, 0].flatten(), [0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1:], log_p[:, 1:].exp(), rtol=1e-6)


@given(st.lists(st.floats(-80, 80, width=32), min_size=4, max_size=4), st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_marginal_form_never_costs_more_nor_breaks_gradients(values, annotated):
    logits = torch.tensor(values)[None, :, None, None, None].requires_grad_()
    target = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    log_p = log_probabilities(logits)
    loss = cross_entropy(marginal(log_p, torch.tensor([annotated])), target)
    assert -1e-5 <= loss.item() <= cross_entropy(log_p, target).item() + 1e-4
    loss.backward()
    assert logits.grad.isfinite().all()


def test_an_unannotated_structure_on_background_costs_nothing():
    annotated = torch.tensor([[True, False]])
    logits = torch.tensor([-20.0, -20.0, 20.0])[None, :, None, None, None].requires_grad_()
    log_p = marginal(log_probabilities(logits), annotated)
    loss = cross_entropy(log_p, voxels(0).to(torch.uint8))
    loss = loss + soft_dice_loss(log_p, voxels(0).to(torch.uint8), annotated, over_batch=True)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max().item() < 1e-6


@pytest.mark.parametrize("over_batch", [True, False])
def test_ignored_voxels_have_no_gradient(random, over_batch):
    logits, target = random
    logits.requires_grad_()
    target = torch.where(torch.arange(5) < 2, torch.tensor(255, dtype=torch.uint8), target)
    log_p = log_probabilities(logits)
    annotated = torch.ones(2, 3, dtype=torch.bool)
    (cross_entropy(log_p, target) + soft_dice_loss(log_p, target, annotated, over_batch)).backward()
    assert not logits.grad[..., :2].any()
    assert logits.grad[..., 2:].any()


def test_all_ignored_is_a_loss_of_0():
    loss = cross_entropy(log_probabilities(torch.randn(1, 1, 1, 1, 3)), torch.full((1, 1, 1, 3), 255).to(torch.uint8))
    assert loss.item() == 0


def test_the_published_dice_by_hand():
    """1 - (2 * sum(p t) + eps) / (sum p + sum t + eps), a sample at a time, then the mean."""
    p = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.1, 0.3]])
    target = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.uint8)[:, None, None]
    log_p = log_probabilities(torch.logit(p)[:, None, None, None])
    annotated = torch.ones(2, 1, dtype=torch.bool)
    one = 1 - (2 * 1.5 + 1e-5) / (1.7 + 2 + 1e-5)
    other = 1 - 1e-5 / (0.5 + 1e-5)
    found = soft_dice_loss(log_p, target, annotated, over_batch=False)
    assert found.item() == pytest.approx((one + other) / 2, abs=1e-6)
    together = soft_dice_loss(log_p, target, annotated, over_batch=True)
    assert together.item() == pytest.approx(1 - 3 / 4.2, abs=1e-5)


def test_dice_leaves_out_what_nobody_looked_for():
    p = [[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]]
    log_p = log_probabilities(logits_of(*p))
    target = voxels(1, 0).to(torch.uint8)
    annotated = torch.tensor([[True, False]])
    expected = 1 - 2 * 0.5 / (0.6 + 1)
    for over_batch in (True, False):
        found = soft_dice_loss(log_p, target, annotated, over_batch)
        assert found.item() == pytest.approx(expected, abs=1e-5)


def test_an_absent_label_that_is_not_predicted_is_no_loss():
    log_p = log_probabilities(torch.full((1, 1, 2, 2, 2), -60.0))
    target = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    for over_batch in (True, False):
        assert soft_dice_loss(log_p, target, torch.tensor([[True]]), over_batch).item() == pytest.approx(0, abs=1e-5)


def test_outside_the_brain_is_where_all_that_is_shown_is_zero_and_nothing_is_labelled():
    images = torch.zeros(1, 2, 4, 1, 1)
    images[0, 0, 0], images[0, 1, 1] = -0.5, 2
    target = torch.tensor([0, 0, 0, 2], dtype=torch.uint8).reshape(1, 4, 1, 1)
    assert outside_brain(images, target).flatten().tolist() == [False, False, True, False]
    ignored = torch.full_like(target, 255)
    assert not outside_brain(images, ignored).any()


def test_the_marginal_form_outside_the_brain_is_background_alone():
    log_p = log_probabilities(logits_of([0.5, 0.2, 0.3]).repeat(1, 1, 2, 1, 1))
    outside = torch.tensor([True, False]).reshape(1, 2, 1, 1)
    found = marginal(log_p, torch.tensor([[True, False]]), outside)
    np.testing.assert_allclose(found[0, 0].exp().flatten(), [0.5, 0.8], rtol=1e-6)
    everything = torch.ones(1, 2, dtype=torch.bool)
    assert marginal(log_p, everything, outside) is log_p


def test_what_was_not_looked_for_costs_outside_the_brain_by_hand():
    log_p = log_probabilities(logits_of([0.5, 0.2, 0.3]).repeat(1, 1, 3, 1, 1))
    target = torch.tensor([0, 0, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    outside = torch.tensor([True, False, False]).reshape(1, 3, 1, 1)
    found = unsearched_outside(log_p, target, torch.tensor([[True, False]]), outside)
    assert found.item() == pytest.approx(-math.log(1 - 0.3) / 2)
    assert unsearched_outside(log_p, target, torch.tensor([[True, True]]), outside).item() == 0
