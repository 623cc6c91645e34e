"""The larger Multi-Unet."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import nn

from multiseg.errors import UsageError
from multiseg.models.builders import multi_unet_plus
from multiseg.models.unet_plus import ProjectedUnit

WIDTHS = (4, 6, 8, 10)
ALL = torch.ones(2, 3, dtype=torch.bool)


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, 24, generator=torch.Generator().manual_seed(1))


def test_logits_of_three_scales_finest_first(images):
    network = multi_unet_plus(3, 2, WIDTHS)
    logits = network(images, ALL, deep=True)
    assert network.num_scales == 3
    assert [tuple(x.shape) for x in logits] == [(2, 2, 16, 16, 24), (2, 2, 8, 8, 12), (2, 2, 4, 4, 6)]
    assert torch.equal(logits[0], network(images, ALL))
    sum(x.square().sum() for x in logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_fewer_resolutions_have_fewer_scales(images):
    network = multi_unet_plus(3, 2, WIDTHS[:3])
    assert (network.num_scales, network.multiple) == (2, 4)
    assert len(network(images, ALL, deep=True)) == 2
    with pytest.raises(UsageError, match=r"widths \[4, 6\] are too few for deep supervision"):
        multi_unet_plus(3, 2, WIDTHS[:2])


def test_full_resolution_gets_through(images):
    """Without anything from coarser features the answer still follows the images."""
    network = multi_unet_plus(3, 1, WIDTHS).eval()
    network.encoder[1].register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    before = network(images, ALL)
    images[:, :, 8, 8, 8] += 10
    assert not torch.allclose(network(images, ALL), before, atol=1e-3)
    assert network.encoder[0](images).shape == (2, 4, 16, 16, 24)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_shortcut_alone(stride):
    """With the other branch silenced, a unit is its projected, averaged input."""
    unit = ProjectedUnit(2, 5, stride, dropout=0.0, norm="instance_affine")
    nn.init.zeros_(unit.convolutions[-1].weight)
    x = torch.randn(1, 2, 4, 4, 4)
    pooled = x.unfold(2, stride, stride).unfold(3, stride, stride).unfold(4, stride, stride).mean((-1, -2, -3))
    expected = F.leaky_relu(F.conv3d(pooled, unit.shortcut[1].weight, unit.shortcut[1].bias), 0.01)
    torch.testing.assert_close(unit(x), expected)


def test_its_own_numbers():
    with torch.device("meta"):
        network = multi_unet_plus(6, 1)
    assert network.encoder[0].convolutions[0].weight.shape == (32, 6, 3, 3, 3)
    assert network.encoder[-1].convolutions[4].weight.shape == (320, 320, 3, 3, 3)
    norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert len(norms) == 18
    assert all(norm.affine for norm in norms)
    assert all(m.p == 0 for m in network.modules() if isinstance(m, nn.Dropout))
