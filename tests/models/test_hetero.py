"""Fusion by mean and variance."""

import pytest
import torch

from multiseg.models.builders import hemis
from multiseg.models.fusion import moments
from multiseg.models.presence import Pairs

WIDTHS = (4, 6, 8)
PRESENT = torch.tensor([[True, False, True], [False, True, False]])


def test_moments_by_hand():
    pairs = Pairs.of(PRESENT, torch.device("cpu"))
    features = {m: torch.full((1, 1, 1, 1, 1), value, requires_grad=True) for m, value in enumerate((1.0, 7.0, 5.0))}
    out = moments(features, pairs)
    assert out.flatten(1).tolist() == [[3.0, 4.0], [7.0, 0.0]]
    out.sum().backward()
    # d/dx of mean + variance: 1/n + 2 (x - mean) / n
    assert [z.grad.item() for z in features.values()] == pytest.approx([0.5 - 2.0, 1.0, 0.5 + 2.0])


def test_permuted_encoders_and_channels_give_the_same_answer():
    network = hemis(3, 2, WIDTHS, dropout=0.0)
    images, order = torch.randn(2, 3, 8, 8, 8), [2, 0, 1]
    before = network(images, PRESENT)
    network.encoders = torch.nn.ModuleList(network.encoders[m] for m in order)
    torch.testing.assert_close(network(images[:, order], PRESENT[:, order]), before, atol=1e-5, rtol=0)
    assert not torch.allclose(network(images, PRESENT), before, atol=1e-3)


def test_a_sequence_twice_changes_nothing():
    network = hemis(3, 2, WIDTHS, dropout=0.0)
    network.encoders[1].load_state_dict(network.encoders[0].state_dict())
    images = torch.randn(1, 3, 8, 8, 8)
    images[:, 1] = images[:, 0]
    once, twice = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(network(images, twice), network(images, once), atol=1e-5, rtol=0)


def test_only_what_is_present_is_computed():
    network = hemis(3, 1, WIDTHS)
    network(torch.randn(1, 3, 8, 8, 8), PRESENT[:1]).square().sum().backward()
    assert all(p.grad is None for p in network.encoders[1].parameters())
    assert all(p.grad is not None for m in (0, 2) for p in network.encoders[m].parameters())
