"""What holds for all networks is in test_builders.py; this holds for the U-Net with summed skips alone."""

import pytest
import torch

from multiseg.errors import UsageError
from multiseg.models.builders import build


def test_it_has_as_many_parameters_as_published() -> None:
    network = build("unet_sum", 1, 5)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_022_053


def test_skips_are_added() -> None:
    """Every convolution of the decoder reads as many channels as its own block has, not twice as many."""
    network = build("unet_sum", 2, 3, widths=(4, 8, 12))
    assert [block[0].in_channels for block in network.decoder] == [8, 4]
    images, present = torch.randn(1, 2, 8, 8, 8), torch.ones(1, 2, dtype=torch.bool)
    before = network.eval()(images, present)
    for up in network.up:
        torch.nn.init.zeros_(up.weight)
        torch.nn.init.zeros_(up.bias)
    assert not torch.equal(before, network(images, present))  # the coarse levels counted
    first = network.encoder[0](images)
    assert torch.equal(network(images, present), network.head(network.decoder[-1](first)))


def test_patches_have_to_be_halved_as_often_as_it_does() -> None:
    network = build("unet_sum", 1, 1, widths=(2, 4, 6))
    with pytest.raises(UsageError, match="give multiples of 4, at least 8"):
        network(torch.zeros(1, 1, 6, 8, 8), torch.ones(1, 1, dtype=torch.bool))
