"""Networks with a first block for every sequence; what holds for all networks is in test_builders.py."""

import pytest
import torch
from torch import nn

from multiseg.models.builders import build
from multiseg.models.stems import AveragedStems

HETERO = ("highres3d_hetero", "unet_hetero")
PRESENT = torch.tensor([[True, False, True], [False, True, False]])


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_features_are_averaged_over_what_a_sample_has() -> None:
    stems = AveragedStems(3, lambda: nn.Conv3d(1, 1, 1, bias=False))
    for weight, block in zip((2.0, 3.0, 10.0), stems.blocks, strict=True):
        nn.init.constant_(block.weight, weight)
    images = torch.tensor([1.0, 5.0, 0.5]).reshape(1, 3, 1, 1, 1).expand(2, -1, 2, 2, 2)
    out = stems(images, PRESENT)
    assert out[0].unique().tolist() == [(2 * 1 + 10 * 0.5) / 2]
    assert out[1].unique().tolist() == [15.0]


def test_highres3dnet_has_as_many_parameters_as_published() -> None:
    """0.81 million for eight classes; a sequence more costs its first layer: 27 x 16 weights and 2 x 16 of the norm."""
    assert num_parameters(build("highres3d_hetero", 1, 8)) == 809_432
    assert num_parameters(build("highres3d_hetero", 2, 8)) == 809_432 + 27 * 16 + 2 * 16


def test_the_unet_has_as_many_parameters_as_released() -> None:
    """Released: 16,516,288 for eight classes of T1 and FLAIR. Its second first block reads both sequences, here one,
    and its last convolution has no bias."""
    assert num_parameters(build("unet_hetero", 2, 8)) == 16_516_288 - 27 * 32 + 8


@pytest.mark.parametrize("name", HETERO)
def test_only_what_is_present_is_computed(name: str) -> None:
    network = build(name, 3, 1, widths=(4, 6, 8))
    network(torch.randn(1, 3, 8, 8, 8), PRESENT[:1]).square().sum().backward()
    assert all(p.grad is None for p in network.stems.blocks[1].parameters())
    assert all(p.grad is not None for m in (0, 2) for p in network.stems.blocks[m].parameters())


@pytest.mark.parametrize("name", HETERO)
def test_a_sequence_twice_changes_nothing(name: str) -> None:
    network = build(name, 3, 2, widths=(4, 6, 8))
    network.stems.blocks[1].load_state_dict(network.stems.blocks[0].state_dict())
    images = torch.randn(1, 3, 8, 8, 8)
    images[:, 1] = images[:, 0]
    once, twice = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(network(images, twice), network(images, once), atol=1e-4, rtol=0)


def test_highres3dnet_sees_far_without_losing_resolution() -> None:
    """A voxel's answer depends on voxels 1 + 3 x 2 x (1 + 2) = 19 away in two stages, and on none further away."""
    network = build("highres3d_hetero", 1, 1, widths=(2, 3, 4), norm="batch").eval()
    for parameter in network.parameters():
        parameter.data.abs_()  # no ReLU is shut, so that everything within reach is seen
    images = torch.rand(1, 1, 8, 8, 48, requires_grad=True)
    network(images, torch.ones(1, 1, dtype=torch.bool))[0, 0, 4, 4, 24].backward()
    seen = images.grad.abs().amax((0, 1, 2, 3)).nonzero().flatten().tolist()
    assert (seen[0], seen[-1]) == (24 - 19, 24 + 19)
