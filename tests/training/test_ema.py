import copy

import pytest
import torch
from torch import nn

from multiseg.training.average import average_of, update_average


class Network(nn.Module):
    """One weight and one buffer."""

    def __init__(self, weight, buffer):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.register_buffer("statistic", torch.tensor([buffer]))


def test_an_average_by_hand():
    network = Network(0.0, 1.0)
    average = average_of(network)
    seen = []
    for step, weight in enumerate([1.0, 2.0, 3.0]):
        with torch.no_grad():
            network.weight.fill_(weight)
        update_average(average, network, 0.15, step)
        seen.append(average.weight.item())
    # Decays 1/10, min(0.15, 2/11) and 0.15.
    first = 0.1 * 0 + 0.9 * 1
    second = 0.15 * first + 0.85 * 2
    assert seen == pytest.approx([first, second, 0.15 * second + 0.85 * 3])


def test_it_begins_by_forgetting():
    """However slow it is later, it is not held back by the random weights of the start."""
    network = Network(0.0, 0.0)
    average = average_of(network)
    with torch.no_grad():
        network.weight.fill_(1.0)
    for step in range(20):
        update_average(average, network, 0.9999, step)
    assert average.weight.item() > 0.99


def test_buffers_are_copied():
    network = Network(0.0, 1.0)
    average = average_of(network)
    network.statistic.fill_(7.0)
    update_average(average, network, 0.999, 100)
    assert average.statistic.item() == 7.0
    network.statistic.fill_(8.0)
    assert average.statistic.item() == 7.0


def test_it_takes_no_gradients_and_leaves_the_network_as_it_is():
    network = Network(2.0, 1.0)
    before = copy.deepcopy(network.state_dict())
    average = average_of(network)
    update_average(average, network, 0.9, 5)
    assert network.weight.requires_grad
    assert not average.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
