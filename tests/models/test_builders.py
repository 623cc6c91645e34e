"""What holds for every network, whatever its name."""

import pytest
import torch
from torch import nn

from multiseg.errors import UsageError
from multiseg.models.blocks import NORMS
from multiseg.models.builders import NETWORKS, build
from multiseg.models.two_unets import BRANCHES

WIDTHS = (4, 6, 8)
SIZE = (8, 8, 12)
PRESENT = torch.tensor([[True, False, True], [False, True, False], [True, True, True], [True, False, False]])


def built(name, norm="instance_affine", num_modalities=3, num_logits=2, dropout=0.0):
    torch.manual_seed(0)
    return build(name, num_modalities, num_logits, widths=WIDTHS, dropout=dropout, norm=norm)


@pytest.fixture
def images():
    return torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_training_reaches_every_parameter(name, norm, images):
    network = built(name, norm, dropout=0.1).train()
    out = network(images, PRESENT)
    assert out.shape == (4, 2, *SIZE)
    (out - torch.randn_like(out)).square().sum().backward()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    # Further scales have logits only with deep=True, and a branch has its own only with branch=.
    spare = (*[f"heads.{at}." for at in range(1, 3)], *[f"{name}.decoder.1.reduce." for name in BRANCHES])
    for parameter, p in trained.items():
        assert parameter.startswith(spare) or (p.grad is not None and p.grad.isfinite().all()), parameter


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", [True, False])
def test_a_sample_alone_and_in_a_batch(name, norm, mode, images):
    network = built(name, norm).train(mode)
    together = network(images, PRESENT)
    for at in range(len(images)):
        alone = network(images[at : at + 1], PRESENT[at : at + 1])
        torch.testing.assert_close(alone, together[at : at + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_absent_channels_hold_has_no_effect(name, garbage, images):
    network = built(name)
    seen = PRESENT[:, :, None, None, None]
    out = network(torch.where(seen, images, garbage), PRESENT)
    assert torch.equal(out, network(torch.where(seen, images, 0.0), PRESENT))
    assert not torch.equal(out, network(images, torch.ones_like(PRESENT)))
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sample_without_any_sequence_has_a_finite_answer(name, images):
    network = built(name)
    nothing = PRESENT.clone()
    nothing[1] = False
    out = network(images, nothing)
    assert out.isfinite().all()
    torch.testing.assert_close(out[0], network(images, PRESENT)[0], atol=1e-5, rtol=0)
    assert network(images, torch.zeros_like(PRESENT)).isfinite().all()
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_flags_stay_as_they_are(name, images):
    flags = torch.zeros_like(PRESENT)
    built(name)(images, flags)
    assert not flags.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_the_last_convolution(name, images):
    network = built(name).eval()
    if name == "two_unets":
        assert list(network.head) == [network.anatomy.head, network.lesion.head]
        return
    assert isinstance(network.head, nn.Conv3d)
    before = network(images, PRESENT)
    with torch.no_grad():
        network.head.bias += torch.tensor([1.0, -2.0])
    shift = network(images, PRESENT) - before
    torch.testing.assert_close(shift, torch.tensor([1.0, -2.0])[None, :, None, None, None].expand_as(shift))


@pytest.mark.parametrize("size", [(8, 8, 6), (4, 8, 8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_that_do_not_fit(name, size):
    network = built(name)
    assert network.multiple == 4
    with pytest.raises(UsageError, match=r"voxels do not fit the network: give multiples of 4, at least 8"):
        network(torch.zeros(1, 3, *size), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"norm": "layer"}, "no norm 'layer': give one of instance, instance_affine, group, batch"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"widths": (8, 4, 8)}, r"widths \[8, 4, 8\] do not fit"),
        ({"widths": (8,)}, r"widths \[8\] do not fit"),
        ({"widths": (0, 4, 8)}, r"widths \[0, 4, 8\] do not fit"),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_that_cannot_be(name, numbers, said):
    with pytest.raises(UsageError, match=said):
        build(name, 3, 1, **numbers)


@pytest.mark.parametrize("widths", [(4, 8), (3, 5, 7, 9), (4, 4, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_widths_and_depths(name, widths):
    if name == "multi_unet_plus" and len(widths) < 3:
        pytest.skip("it takes three widths or more")
    network = build(name, 3, 5, widths=widths)
    size = tuple(n * network.multiple for n in (2, 2, 3))
    assert network(torch.randn(1, 3, *size), torch.ones(1, 3, dtype=torch.bool)).shape == (1, 5, *size)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision(name, images):
    network = built(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(images, PRESENT)
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    torch.testing.assert_close(out.float(), network(images, PRESENT), atol=0.2, rtol=0.1)


@pytest.mark.parametrize("name", ["lf_unet", "maf_unet", "hemis", "multi_unet_plus"])
def test_more_sequences_than_the_first_width(name):
    network = built(name, num_modalities=5)
    assert network(torch.randn(1, 5, *SIZE), torch.ones(1, 5, dtype=torch.bool)).shape == (1, 2, *SIZE)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_record_says_whether_the_first_width_limits_the_sequences(name):
    if NETWORKS[name].is_bounded:
        with pytest.raises(UsageError, match="do not fit 5 sequences"):
            built(name, num_modalities=5)
    else:
        assert built(name, num_modalities=5).multiple == 4


@pytest.mark.parametrize("name", NETWORKS)
def test_the_record_says_whether_every_batch_uses_every_parameter(name, images):
    network, present = built(name).train(), torch.zeros_like(PRESENT)
    present[:, 0] = True
    network(images, present).square().sum().backward()
    # Further scales have logits only with deep=True, as in training.
    learnt = {n: p.grad for n, p in network.named_parameters() if p.requires_grad and not n.startswith("heads.")}
    assert all(gradient is not None for gradient in learnt.values()) == NETWORKS[name].uses_every_parameter
