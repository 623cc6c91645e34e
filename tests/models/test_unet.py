import pytest
import torch

from multiseg.errors import UsageError
from multiseg.models.builders import build, multi_unet
from multiseg.models.devices import resolve_device

PARAMETERS = {1: 8_898_770, 2: 8_899_202, 4: 8_900_066, 5: 8_900_498, 6: 8_900_930, 7: 8_901_362}
"""Of the released network, by its number of sequences."""


@pytest.fixture
def small():
    torch.manual_seed(0)
    return multi_unet(3, 2, widths=(4, 8), dropout=0.0).eval()


@pytest.mark.parametrize(("num_modalities", "expected"), PARAMETERS.items())
def test_number_of_parameters(num_modalities, expected):
    with torch.device("meta"):
        network = multi_unet(num_modalities, 1)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(
    ("widths", "size"), [((4, 8), (4, 6, 8)), ((4, 4, 8), (8, 8, 12)), ((3, 5, 7, 9), (16, 16, 24))]
)
def test_other_widths_and_depths_answer_on_the_grid_of_the_images(widths, size):
    network = multi_unet(3, 5, widths=widths)
    out = network(torch.randn(2, 3, *size), torch.ones(2, 3, dtype=torch.bool))
    assert out.shape == (2, 5, *size)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30, 7.0])
def test_what_an_absent_channel_holds_has_no_effect(small, garbage):
    images = torch.randn(2, 3, 8, 8, 8)
    present = torch.tensor([[True, False, True], [False, True, True]])
    filled = torch.where(present[:, :, None, None, None], images, 0.0)
    spoilt = torch.where(present[:, :, None, None, None], images, garbage)
    assert torch.equal(small(spoilt, present), small(filled, present))
    assert not torch.equal(small(images, torch.ones_like(present)), small(filled, present))


def test_gradients_are_finite_beside_an_absent_channel_of_nan():
    network = multi_unet(2, 1, widths=(4, 8))
    images = torch.stack([torch.randn(8, 8, 8), torch.full((8, 8, 8), torch.nan)])[None]
    network(images, torch.tensor([[True, False]])).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_what_the_head_reads_has_the_size_of_the_images(norm):
    network = multi_unet(3, 2, widths=(4, 8), dropout=0.0, norm=norm).eval()
    images = torch.randn(1, 3, 8, 8, 12)
    features = network.features(images)
    assert features.shape == (1, 4 + 8, 8, 8, 12)
    assert torch.equal(network.head(features), network(images, torch.ones(1, 3, dtype=torch.bool)))


@pytest.mark.parametrize("size", [(8, 8, 7), (9, 8, 8), (8, 2, 8)])
def test_sizes_that_do_not_fit(small, size):
    with pytest.raises(
        UsageError, match=rf"\({size[0]}, {size[1]}, {size[2]}\) voxels do not fit.*multiples of 2, at least 4"
    ):
        small(torch.zeros(1, 3, *size), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(("num_modalities", "widths"), [(5, (4, 8)), (1, (4,)), (1, (8, 4)), (1, ())])
def test_widths_that_do_not_fit(num_modalities, widths):
    with pytest.raises(UsageError, match=f"do not fit {num_modalities} sequences"):
        multi_unet(num_modalities, 1, widths=widths)


def test_a_network_of_unknown_name():
    with pytest.raises(UsageError, match=r"no network 'unetr': give one of multi_unet"):
        build("unetr", 1, 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_devices_that_are_not_there(name):
    with pytest.raises(UsageError, match=f"device .*'{name}'"):
        resolve_device(name)


def test_the_device_by_its_name():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
