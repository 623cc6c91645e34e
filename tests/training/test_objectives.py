import pytest
import torch
from torch import nn

from multiseg.loaders.batches import Batch
from multiseg.training.objectives import OBJECTIVES


class Fixed(nn.Module):
    """Answers with the same logits whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images, present):
        return self.logits


def batch_of(target, annotated):
    num, size = len(target), target.shape[1:]
    return Batch(
        images=torch.zeros(num, 1, *size),
        present=torch.ones(num, 1, dtype=torch.bool),
        target=target,
        annotated=annotated,
        database=("ms",) * num,
        case=("P1",) * num,
        corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.zeros(num, 2, dtype=torch.int64),
    )


NO_LESION = batch_of(torch.zeros(2, 4, 4, 4, dtype=torch.uint8), torch.ones(2, 1, dtype=torch.bool))


def test_a_false_alarm_on_a_patch_without_lesion_has_a_gradient():
    network = Fixed(torch.full((2, 1, 4, 4, 4), 3.0))
    OBJECTIVES["dice+bce"](network, NO_LESION, 0)[0].backward()
    assert (network.logits.grad > 1e-4).all()


def test_the_published_loss_hardly_has_one():
    """Why it is not the default."""
    network = Fixed(torch.full((2, 1, 4, 4, 4), 3.0))
    OBJECTIVES["dice"](network, NO_LESION, 0)[0].backward()
    assert network.logits.grad.abs().max() < 1e-6


def test_dice_and_cross_entropy_add_up():
    target = torch.randint(0, 2, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batch = batch_of(target, torch.ones(2, 1, dtype=torch.bool))
    loss, scalars = OBJECTIVES["dice+bce"](Fixed(torch.zeros(2, 1, 4, 4, 4)), batch, 0)
    assert set(scalars) == {"dice_loss", "cross_entropy"}
    assert loss.item() == pytest.approx(scalars["dice_loss"].item() + scalars["cross_entropy"].item())
    assert scalars["cross_entropy"].item() == pytest.approx(0.693147, abs=1e-5)
    share = target.float().mean().item()
    assert scalars["dice_loss"].item() == pytest.approx(1 - share / (0.5 + share), abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_nobody_looked_for_has_no_gradient_on_background(name):
    logits = torch.zeros(1, 3, 4, 4, 4)
    logits[:, 2] = 30.0
    network = Fixed(logits)
    batch = batch_of(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.tensor([[True, False]]))
    OBJECTIVES[name](network, batch, 0)[0].backward()
    assert network.logits.grad.abs().max() < 1e-6
