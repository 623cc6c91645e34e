"""Meta-learning: the inner step is differentiated as it should be, and lesions are pasted where they belong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from multiseg.errors import UsageError
from multiseg.loaders.augment import AugmentOptions, augment
from multiseg.loaders.batches import Batch, Donor
from multiseg.loaders.graft_source import Grafted
from multiseg.models.builders import build
from multiseg.models.losses import consistency_loss
from multiseg.models.two_branch import CONSTANTS, filled
from multiseg.training.meta import GraftStream, MetaOptions, _constants, adapted_parameters, meta_objective

SIZE = (8, 8, 8)


def of_three(parameters):
    """A network of three parameters, and a loss of it that is not quadratic."""
    a, b, c = parameters["w"]
    return (torch.sigmoid(a * 1.3 - b) - 0.2) ** 2 + torch.exp(c * a) * 0.3 + b**3


def outer(parameters):
    a, b, c = parameters["w"]
    return torch.tanh(a * b) + (c - 0.4) ** 2 * a


def gradient(start, rate, first_order=False):
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    outer(adapted_parameters(of_three, {"w": w}, rate, first_order)).backward()
    return w.grad.numpy()


def by_differences(start, rate, step=1e-5):
    def value(w):
        w = torch.tensor(w, dtype=torch.float64)
        with torch.enable_grad():
            return float(outer(adapted_parameters(of_three, {"w": w}, rate)))

    shifts = np.eye(3) * step
    return np.array([(value(start + shift) - value(start - shift)) / (2 * step) for shift in shifts])


START = np.array([0.7, -0.4, 0.9])


def test_the_outer_gradient_is_of_second_order():
    found, expected = gradient(START, 0.5), by_differences(START, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(gradient(START, 0.5, first_order=True) - expected).max() > 0.05


def test_the_first_order_gradient_is_that_of_the_outer_loss_at_the_adapted_weights():
    with torch.no_grad():
        w = adapted_parameters(of_three, {"w": torch.tensor(START)}, 0.5, first_order=True)["w"]
    w.requires_grad_()
    outer({"w": w}).backward()
    np.testing.assert_allclose(gradient(START, 0.5, first_order=True), w.grad.numpy(), rtol=1e-12)


def test_two_equal_and_two_disjoint_answers():
    a = torch.zeros(1, 2, 2, 2, 2)
    a[:, 1, 0], a[:, 0, 1] = 1, 1
    assert consistency_loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert consistency_loss(a, a.flip(1)).item() == pytest.approx(1, abs=1e-5)
    # 2 * (4 * 0.5) / (4 + 2) of the one structure
    half = a * 0.5
    assert consistency_loss(a, half).item() == pytest.approx(1 - 4 / 6, abs=1e-5)


def test_only_the_lesion_of_sequences_that_are_present_is_filled():
    images, lesion = torch.ones(2, 2, 2, 2, 2), torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    lesion[:, 0] = True
    present = torch.tensor([[True, False], [True, True]])
    out = filled(images, present, lesion, torch.tensor([5.0, -2.0]))
    expected = torch.ones_like(out)
    expected[0, 0, 0], expected[1, :, 0] = 5, -2
    assert torch.equal(out, expected)


def batch_of(lesion, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num = len(lesion)
    return Batch(
        images=torch.randn(num, 1, *SIZE, generator=generator),
        present=torch.ones(num, 1, dtype=torch.bool),
        target=torch.randint(3, (num, *SIZE), generator=generator, dtype=torch.uint8),
        annotated=torch.ones(num, 2, dtype=torch.bool),
        database=("a",) * num,
        case=("b",) * num,
        corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.arange(2 * num).reshape(num, 2),
        donor=Donor(torch.randn(num, 1, *SIZE, generator=generator), lesion),
    )


def network_of():
    torch.manual_seed(0)
    network = build("two_branch", 1, 4, widths=(2, 2))
    network.learn_only(("anatomy",))
    return network.train()


def gradients(network, batch, **numbers):
    network.zero_grad()
    loss, terms = meta_objective(MetaOptions(**numbers), seed=0)(network, batch, 0)
    loss.backward()
    return loss.item(), terms, torch.cat([p.grad.flatten() for p in network.anatomy.parameters()])


def some_lesion(num=2):
    lesion = torch.zeros(num, *SIZE, dtype=torch.bool)
    lesion[0, 2:6, 2:6, 2:6] = True
    return lesion


def test_first_order_changes_the_gradient_but_not_the_loss():
    network, batch = network_of(), batch_of(some_lesion())
    loss, _, second = gradients(network, batch, inner_rate=0.5)
    same, _, first = gradients(network, batch, inner_rate=0.5, first_order=True)
    assert loss == pytest.approx(same)
    assert (first - second).norm() > 1e-3 * second.norm()
    assert network.lesion.head.weight.grad is None


def test_without_an_inner_step_the_loss_is_that_of_the_weights_as_they_are():
    network, batch = network_of(), batch_of(some_lesion())
    loss, terms, _ = gradients(network, batch, inner_rate=0.0)
    assert loss == pytest.approx(gradients(network, batch, inner_rate=1e-9)[0], abs=1e-6)
    assert loss == pytest.approx(sum(float(term) for term in terms.values()))
    assert terms["pasted"] > 0


def test_a_batch_without_lesion_has_no_inner_step():
    network = network_of()
    none = batch_of(torch.zeros(2, *SIZE, dtype=torch.bool))
    assert gradients(network, none, inner_rate=0.1)[0] == gradients(network, none, inner_rate=10.0)[0]
    with_lesion = batch_of(some_lesion())
    assert gradients(network, with_lesion, inner_rate=0.1)[0] != gradients(network, with_lesion, inner_rate=10.0)[0]
    assert gradients(network, none)[1]["pasted"] == 0


def test_a_graft_stream_gives_each_patch_its_lesion():
    class Fixed:
        def batches(self, start, stop):
            return (replace(healthy, case=(str(n), str(n)), donor=None) for n in range(start, stop))

        def draw(self, batch):
            return Grafted(batch, replace(batch, images=batch.images + 1), lesion, ("a", ""))

    healthy, lesion = batch_of(some_lesion()), some_lesion()
    (batch,) = GraftStream(Fixed(), Fixed()).batches(3, 4)
    assert batch.case == ("3", "3")
    assert torch.equal(batch.images, healthy.images)
    assert torch.equal(batch.donor.images, healthy.images + 1)
    assert torch.equal(batch.donor.lesion, lesion)


def test_a_donor_moves_with_its_patch():
    batch = batch_of(some_lesion())
    batch = replace(batch, donor=Donor(batch.images.clone(), batch.donor.lesion))
    moved = augment(batch, AugmentOptions(flip_probability=1.0, gamma_probability=1.0))
    assert not torch.equal(moved.images, batch.images)
    assert torch.equal(moved.images, moved.donor.images)
    assert torch.equal(moved.donor.lesion, batch.donor.lesion.flip(1))


def test_a_step_size_that_cannot_be():
    with pytest.raises(UsageError, match=r"meta.inner_rate is -0.1: give a number from 0 on"):
        MetaOptions(inner_rate=-0.1)


def test_the_constants_are_drawn_for_each_patch():
    batch = batch_of(torch.zeros(40, *SIZE, dtype=torch.bool))
    drawn = _constants(batch, 0)
    assert set(drawn.tolist()) == set(CONSTANTS)
    assert not torch.equal(drawn, _constants(batch, 1))
    assert torch.equal(drawn.flip(0), _constants(replace(batch, draws=batch.draws.flip(0)), 0))
