"""What holds for the network of two U-Nets alone."""

import pytest
import torch

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.losses import cross_entropy, marginal
from multiseg.models.presence import shown
from multiseg.models.two_unets import numbers_from

SPACE = LabelSpace.of(["tissue:GM", "lesion", "tissue:WM"])
AXIS = ModalityAxis(("FLAIR", "T1"))
ALL = torch.ones(2, 2, dtype=torch.bool)
TISSUES, LESION = torch.tensor([[True, False, True]] * 2), torch.tensor([[False, True, False]] * 2)


def network_of():
    torch.manual_seed(0)
    numbers = numbers_from(AXIS, SPACE)
    return build("two_unets", 2, SPACE.num_logits, widths=(4, 6), **numbers).eval()


@pytest.fixture
def images():
    return torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_lesion_takes_the_place_of_a_tissue(images):
    network = network_of()
    log_p = network(images, ALL)
    tissue = network.anatomy(shown(images, torch.tensor([[False, True]] * 2)), ALL).softmax(dim=1)
    lesion = network.lesion(images, ALL).softmax(dim=1)
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(2, 8, 8, 8))
    torch.testing.assert_close(log_p[:, 2].exp(), lesion[:, 1])
    torch.testing.assert_close(log_p[:, [0, 1, 3]].exp(), tissue * lesion[:, :1])
    assert torch.equal(network(images, ALL, branch="pasted"), log_p)
    assert network(images, ALL, branch="anatomy").shape[1] == 3
    assert network(images, ALL, branch="lesion").shape[1] == 2


def test_there_are_no_tissues_without_their_sequence(images):
    network, only_flair = network_of(), torch.tensor([[True, False]] * 2)
    log_p = network(images, only_flair)
    assert bool((log_p[:, [1, 3]] < -20).all())
    torch.testing.assert_close(log_p[:, 2].exp() + log_p[:, 0].exp(), torch.ones(2, 8, 8, 8))
    log_p[:, 1].sum().backward()
    assert not any(p.grad.any() for p in network.anatomy.parameters() if p.grad is not None)


@pytest.mark.parametrize(("annotated", "silent"), [(LESION, "anatomy"), (TISSUES, "")])
def test_a_case_without_tissues_teaches_the_anatomy_branch_nothing(annotated, silent, images):
    network = network_of()
    target = torch.zeros(2, 8, 8, 8, dtype=torch.uint8)
    target[:, :4] = 2 if annotated is LESION else 1
    cross_entropy(marginal(network(images, ALL), annotated), target).backward()
    size = {
        name: max(float(p.grad.abs().max()) for p in part.parameters() if p.grad is not None)
        for name, part in network.named_children()
    }
    assert all((value < 1e-6) == (name == silent) for name, value in size.items())


def test_it_needs_a_background():
    with pytest.raises(UsageError, match="1 logit is too few"):
        build("two_unets", 2, 1, widths=(4, 6))
