"""What holds for the network of two branches alone."""

import pytest
import torch

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.presence import shown
from multiseg.models.two_unets import Branch, branch_space, numbers_from

SPACE = LabelSpace.of(["lesion", "tissue:GM", "tissue:WM"])
AXIS = ModalityAxis(("FLAIR", "T1", "T2"))
ALL = torch.ones(2, 3, dtype=torch.bool)


def network_of(norm="instance_affine", dropout=0.0):
    torch.manual_seed(0)
    numbers = numbers_from(AXIS, SPACE)
    return build("two_branch", 3, SPACE.num_logits, widths=(4, 6), norm=norm, dropout=dropout, **numbers).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_numbers_follow_from_the_axis_and_the_labels():
    assert numbers_from(AXIS, SPACE) == {"anatomy_channels": [1], "lesion_logits": [1]}
    assert branch_space(SPACE, "anatomy").names == ("GM", "WM")
    assert branch_space(SPACE, "lesion").names == ("lesion",)
    with pytest.raises(UsageError, match="sees T1, but the training cases have only FLAIR, T2"):
        numbers_from(ModalityAxis(("FLAIR", "T2")), SPACE)
    with pytest.raises(UsageError, match="there is no tissue among the labels lesion"):
        numbers_from(AXIS, LabelSpace())
    with pytest.raises(UsageError, match="there is no lesion among the labels GM"):
        numbers_from(AXIS, LabelSpace.of(["tissue:GM"]))


def test_the_fusion_is_that_of_the_equation(images):
    network = network_of()
    anatomy = network.anatomy.features(shown(images, torch.tensor([[False, True, False]] * 2)))
    lesion = network.lesion.features(images)
    attention = network.attention(torch.cat([anatomy, lesion], dim=1))
    torch.testing.assert_close(network(images, ALL), network.head(anatomy + attention * lesion))
    torch.testing.assert_close(network(images, ALL, branch="anatomy"), network.anatomy.head(anatomy))
    torch.testing.assert_close(Branch(network, "lesion")(images, ALL), network.lesion.head(lesion))
    assert network(images, ALL, branch="anatomy").shape[1] == 3
    assert network(images, ALL, branch="lesion").shape[1] == 2
    assert [type(layer).__name__ for layer in network.attention].count("Conv3d") == 3


def test_the_anatomy_branch_sees_only_its_sequences(images):
    network, others = network_of(), images.clone()
    others[:, [0, 2]] += 1
    assert torch.equal(network(images, ALL, branch="anatomy"), network(others, ALL, branch="anatomy"))
    assert not torch.equal(network(images, ALL, branch="lesion"), network(others, ALL, branch="lesion"))
    blind = network(images, torch.tensor([[True, False, True]] * 2), branch="anatomy")
    assert torch.equal(blind[:, :, 2:-2, 2:-2, 2:-2], blind[:, :, 2:3, 2:3, 2:3].expand(-1, -1, 4, 4, 4))


def test_frozen_parts_do_not_change_in_training(images):
    network = network_of("batch", dropout=0.5)
    network.learn_only(("anatomy", "attention", "head"))
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    assert torch.equal(network(images, ALL, branch="lesion"), network(images, ALL, branch="lesion"))
    network(images, ALL).square().sum().backward()
    optimiser.step()
    changed = {
        name.split(".")[0] for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"anatomy", "attention", "head"}
    assert not network.lesion.training


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"anatomy_channels": [3]}, r"anatomy_channels is \[3\]: give distinct numbers from 0 to 2"),
        ({"anatomy_channels": []}, r"anatomy_channels is \[\]"),
        ({"lesion_logits": [0]}, r"lesion_logits is \[0\]: give distinct numbers from 1 to 3"),
        ({"lesion_logits": [2, 2]}, r"lesion_logits is \[2, 2\]"),
    ],
)
def test_numbers_that_cannot_be(numbers, message):
    with pytest.raises(UsageError, match=message):
        build("two_branch", 3, 4, widths=(4, 6), **numbers)
