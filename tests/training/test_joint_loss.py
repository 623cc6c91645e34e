"""The losses of the stage joint: what the whole network and the anatomy branch are compared with, and who learns."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from multiseg.loaders.batches import Batch
from multiseg.models.losses import consistency_loss, log_probabilities, soft_dice_loss
from multiseg.models.two_branch import TwoBranch
from multiseg.training.joint_loss import soft_dice, soft_targets, with_anatomy
from multiseg.training.objectives import Objective, objective_named
from multiseg.training.stages import STAGES

SIZE = (8, 8, 8)
WHOLE, ANATOMY = slice(0, 4), slice(4, 7)


def random_batch() -> Batch:
    """Two patches of FLAIR and T1; the label space is lesion, GM, WM."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(2, 2, *SIZE, generator=generator),
        torch.ones(2, 2, dtype=torch.bool),
        torch.randint(4, (2, *SIZE), generator=generator).to(torch.uint8),
        torch.ones(2, 3, dtype=torch.bool),
        ("a", "b"),
        ("x", "y"),
        torch.zeros(2, 3, dtype=torch.int64),
        torch.zeros(2, 2, dtype=torch.int64),
        tissues=(1, 2),
        soft=torch.randn(2, 3, *SIZE, generator=generator).softmax(dim=1)[:, 1:],
    )


def fresh_network() -> TwoBranch:
    torch.manual_seed(0)
    return TwoBranch(2, 4, (4, 4), 0.0, anatomy_channels=(1,), lesion_logits=(1,))


class Answering(nn.Module):
    """Answers the same logits to everything: those of the whole network, and beside them those of the anatomy."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor, present: Tensor, branch: str = "") -> Tensor:
        return self.logits if branch == "beside" else self.logits[:, WHOLE]


def answering(seed: int = 1) -> Answering:
    return Answering(torch.randn(2, 7, *SIZE, generator=torch.Generator().manual_seed(seed)))


def test_a_true_lesion_takes_the_place_of_tissue_in_the_targets_of_the_whole_network() -> None:
    batch = random_batch()
    target = batch.target.clone()
    target[0, 0, 0, 0] = 255
    soft, lesion = soft_targets(replace(batch, target=target)), target == 1
    assert torch.equal(soft[:, 1], lesion.float())
    assert soft[0, :, 0, 0, 0].sum() == 0
    others = ~lesion & (target != 255)
    torch.testing.assert_close(soft.sum(dim=1)[target != 255], torch.ones(int((target != 255).sum())))
    for tissue in (0, 1):
        assert torch.equal(soft[:, 2 + tissue][others], batch.soft[:, tissue][others])
        assert soft[:, 2 + tissue][lesion].sum() == 0


def test_the_anatomy_branch_is_compared_with_the_tissues_also_under_lesions() -> None:
    batch, network = random_batch(), answering()
    loss, terms = soft_dice(network, batch, 0)
    p = network.logits[:, ANATOMY].softmax(dim=1)
    expected = consistency_loss(p, torch.cat([1 - batch.soft.sum(1, keepdim=True), batch.soft], dim=1))
    torch.testing.assert_close(terms["anatomy"], expected)
    torch.testing.assert_close(loss, terms["soft_dice"] + terms["anatomy"])
    ignored = replace(batch, target=torch.full_like(batch.target, 255))
    assert soft_dice(network, ignored, 0)[0].item() == pytest.approx(0, abs=1e-5)


def test_lesions_that_nobody_searched_for_do_not_count() -> None:
    network = answering()
    batch = replace(random_batch(), annotated=torch.tensor([[True, False, False], [False, False, False]]))
    p, soft, counts = network.logits[:, WHOLE].softmax(dim=1), soft_targets(batch), torch.ones(2, 4, 1, 1, 1)
    counts[1, 1] = 0
    torch.testing.assert_close(
        soft_dice(network, batch, 0)[1]["soft_dice"], consistency_loss(p * counts, soft * counts)
    )
    nowhere = replace(batch, annotated=torch.zeros_like(batch.annotated))
    tissues = consistency_loss(p[:, [0, 2, 3]], soft[:, [0, 2, 3]])
    torch.testing.assert_close(soft_dice(network, nowhere, 0)[1]["soft_dice"], tissues)


def of_labels() -> Objective:
    return STAGES["joint"].objective(objective_named("dice+bce"))


@pytest.mark.parametrize("objective", [lambda: soft_dice, of_labels])
def test_the_head_of_the_anatomy_branch_learns_with_its_features(objective: Callable[[], Objective]) -> None:
    network = fresh_network()
    STAGES["joint"].freeze(network)
    objective()(network, random_batch(), 0)[0].backward()
    for part in (network.anatomy.head, network.head, network.attention[0]):
        assert part.weight.grad is not None
        assert part.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.lesion.parameters())


def test_some_steps_of_joint_leave_the_anatomy_branch_no_worse() -> None:
    """With the whole network's loss alone, its features leave the head behind."""
    batch, network = random_batch(), fresh_network()
    STAGES["joint"].freeze(network)
    optimiser = torch.optim.Adam([one for one in network.parameters() if one.requires_grad], 1e-2)
    seen = []
    for _ in range(8):
        optimiser.zero_grad()
        loss, terms = soft_dice(network, batch, 0)
        loss.backward()
        optimiser.step()
        seen.append(terms["anatomy"].item())
    assert seen[-1] < seen[0] - 0.01


def test_annotated_tissues_are_compared_outside_lesions() -> None:
    batch, network = random_batch(), answering()
    plain = objective_named("dice+bce")
    alone = plain(network, batch, 0)[0]
    loss, terms = with_anatomy(plain)(network, batch, 0)
    target = torch.tensor([0, 255, 1, 2], dtype=torch.uint8)[batch.target.long()]
    log_p = log_probabilities(network.logits[:, ANATOMY])
    expected = soft_dice_loss(log_p, target, batch.annotated[:, [1, 2]], over_batch=True)
    torch.testing.assert_close(terms["anatomy"], expected)
    torch.testing.assert_close(loss, alone + expected)
    lesions_alone = replace(batch, annotated=torch.tensor([[True, False, False]] * 2))
    assert with_anatomy(plain)(network, lesions_alone, 0)[1]["anatomy"] == 0


def test_an_objective_that_shows_other_images_first_does_not_mix_them_up() -> None:
    batch, network = random_batch(), fresh_network()

    def own(network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return network(batch.images.flip(2), batch.present).mean(), {}

    given = with_anatomy(own)(network, batch, 0)[1]["anatomy"]
    expected = with_anatomy(objective_named("dice+bce"))(network, batch, 0)[1]["anatomy"]
    torch.testing.assert_close(given, expected)


def test_a_pass_without_gradients_does_not_stop_the_head_from_learning() -> None:
    batch, network = random_batch(), fresh_network()

    def taught(network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            wanted = network(batch.images, batch.present)
        return (network(batch.images, batch.present) - wanted - 1).square().mean(), {}

    with_anatomy(taught)(network, batch, 0)[0].backward()
    assert network.anatomy.head.weight.grad.abs().sum() > 0


def test_an_objective_may_ask_for_a_branch_and_see_the_parts_of_the_network() -> None:
    batch, network, seen = random_batch(), fresh_network(), []

    def own(shown: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert shown.anatomy is network.anatomy
        assert shown.anatomy_channels == (1,)
        assert not hasattr(shown, "no such part")
        assert copy.deepcopy(shown).head is not network.head
        seen.extend(shown(batch.images, batch.present, branch=branch) for branch in ("anatomy", "lesion", "pasted"))
        return shown(batch.images, batch.present).mean(), {}

    with_anatomy(own)(network, batch, 0)[0].backward()
    for branch, answer in zip(("anatomy", "lesion", "pasted"), seen, strict=True):
        torch.testing.assert_close(answer, network(batch.images, batch.present, branch=branch))
