"""Norms by name, and the shortcut of the published network."""

import pytest
import torch
from torch import nn

from multiseg.errors import UsageError
from multiseg.models.blocks import ResidualUnit, UpStage, norm_layer
from multiseg.models.builders import multi_unet

RELEASED = {"instance": 8_900_930, "batch": 8_904_354, "group": 8_904_354, "instance_affine": 8_904_354}
"""Parameters for six sequences: of the releases' instance, batch and group norm; affine instance norm has as many."""


@pytest.mark.parametrize(("norm", "expected"), RELEASED.items())
def test_number_of_parameters_by_norm(norm, expected):
    with torch.device("meta"):
        network = multi_unet(6, 1, norm=norm)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(("norm", "of_norm", "of_all"), [("batch", 85, 138), ("instance", 0, 53), ("group", 34, 87)])
def test_number_of_tensors_by_norm(norm, of_norm, of_all):
    with torch.device("meta"):
        names = set(multi_unet(6, 1, norm=norm).state_dict())
    assert len(names) == of_all
    assert len([name for name in names if ".norm." in name]) == of_norm


@pytest.mark.parametrize(("width", "groups"), [(16, 16), (64, 16), (24, 8), (20, 4), (7, 1)])
def test_groups_divide_every_width(width, groups):
    norm = norm_layer("group", width)
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.eps, norm.affine) == (groups, width, 1e-5, True)


def test_a_norm_of_unknown_name():
    with pytest.raises(UsageError, match="no norm 'layer': give one of instance, instance_affine, group, batch"):
        norm_layer("layer", 8)


def test_the_shortcut_goes_into_the_first_channels_only():
    unit = ResidualUnit(2, 5, stride=1, dropout=0.0)
    x = torch.randn(1, 2, 4, 4, 4)
    plain = unit.second(unit.first(x))
    assert torch.equal(unit(x)[:, :2], plain[:, :2] + x)
    assert torch.equal(unit(x)[:, 2:], plain[:, 2:])


def test_the_shortcut_of_a_stride_counts_the_padding_in():
    unit = ResidualUnit(1, 4, stride=2, dropout=0.0)
    x = torch.ones(1, 1, 4, 4, 4)
    shortcut = unit(x)[:, :1] - unit.second(unit.first(x))[:, :1]
    assert shortcut[0, 0, 0, 0, 0].item() == pytest.approx(8 / 27, abs=1e-5)
    assert shortcut[0, 0, 1, 1, 1].item() == pytest.approx(1.0, abs=1e-5)


def test_the_shortcut_leaves_lateral_features_out():
    unit = ResidualUnit(2, 5, stride=1, dropout=0.0, lateral=3)
    x, lateral = torch.randn(1, 2, 4, 4, 4), torch.randn(1, 3, 4, 4, 4)
    plain = unit.second(unit.first(torch.cat([x, lateral], dim=1)))
    out = unit(x, lateral)
    assert torch.equal(out[:, :2], plain[:, :2] + x)
    assert torch.equal(out[:, 2:], plain[:, 2:])


def test_a_stage_with_lateral_features_keeps_the_width_of_its_own():
    stage = UpStage(5, 2, dropout=0.0, is_last=False, lateral=4)
    out = stage(torch.randn(1, 3, 2, 2, 2), torch.randn(1, 2, 2, 2, 2), torch.randn(1, 4, 2, 2, 2))
    assert out.shape == (1, 2, 4, 4, 4)
    assert stage.keep.conv.weight.shape[:2] == (5, 9)
