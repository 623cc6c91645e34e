from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import nn

from multiseg.loaders.batches import Batch
from multiseg.models.losses import weights_by_kind
from multiseg.training.objectives import OBJECTIVES


class Fixed(nn.Module):
    """Answers with the same logits whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images, present):
        return self.logits


def batch_of(target, annotated, images=None):
    """A batch of patches that lie in the brain whole, unless their images say otherwise."""
    num, size = len(target), target.shape[1:]
    return Batch(
        images=torch.ones(num, 1, *size) if images is None else images,
        present=torch.ones(num, 1 if images is None else images.shape[1], dtype=torch.bool),
        target=target,
        annotated=annotated,
        database=("ms",) * num,
        case=("P1",) * num,
        corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.zeros(num, 2, dtype=torch.int64),
    )


class Scales(nn.Module):
    """Answers with fixed logits at several scales."""

    def __init__(self, *logits):
        super().__init__()
        self.num_scales = len(logits)
        self.logits = nn.ParameterList(logits)

    def forward(self, images, present, deep=False):
        return list(self.logits) if deep else self.logits[0]


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
    shares = [one.float().mean().item() for one in target]
    dice = sum(share / (0.5 + share) for share in shares) / 2
    assert scalars["dice_loss"].item() == pytest.approx(1 - dice, abs=1e-5)


def test_a_small_lesion_counts_as_much_as_a_large_one_in_the_same_batch():
    """With p = 1/2: 2 sum p t / (sum p + sum t) is 1/33 for one voxel of 64 and 2/3 for all of them."""
    target = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    target[0, 0, 0, 0] = 1
    target[1] = 1
    batch = batch_of(target, torch.ones(2, 1, dtype=torch.bool))
    network = Fixed(torch.zeros(2, 1, 4, 4, 4))
    _, each = OBJECTIVES["dice+bce"](network, batch, 0)
    _, pooled = OBJECTIVES["batch_dice+bce"](network, batch, 0)
    assert each["dice_loss"].item() == pytest.approx(1 - (1 / 33 + 2 / 3) / 2, abs=1e-5)
    assert pooled["dice_loss"].item() == pytest.approx(1 - 65 / (64 + 65), abs=1e-5)


ADAPTIVE = [name for name, objective in OBJECTIVES.items() if not objective.is_naive]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_what_nobody_looked_for_has_no_gradient_on_background(name):
    logits = torch.zeros(1, 3, 4, 4, 4)
    logits[:, 2] = 30.0
    network = Fixed(logits)
    batch = batch_of(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.tensor([[True, False]]))
    OBJECTIVES[name](network, batch, 0)[0].backward()
    assert network.logits.grad.abs().max() < 1e-6


def half_brain(num_modalities=1):
    images = torch.zeros(1, num_modalities, 4, 4, 4)
    images[:, 0, :2] = 1
    return images


@pytest.mark.parametrize("name", ADAPTIVE)
def test_what_nobody_looked_for_is_pushed_down_outside_the_brain_alone(name):
    network = Fixed(torch.zeros(1, 3, 4, 4, 4))
    batch = batch_of(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.tensor([[True, False]]), half_brain())
    OBJECTIVES[name](network, batch, 0)[0].backward()
    assert (network.logits.grad[:, 2, 2:] > 1e-4).all()
    assert (network.logits.grad[:, 2, :2] <= 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_where_all_was_looked_for_the_brain_changes_nothing(name):
    target = torch.randint(0, 3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    inside, outside = (
        OBJECTIVES[name](Fixed(logits), batch_of(target, torch.tensor([[True, True]]), images), 0)[0].item()
        for images in (None, torch.zeros(1, 1, 4, 4, 4))
    )
    assert inside == outside


@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_outside_the_brain_and_voxels_to_ignore_stay_what_they_are(name):
    target = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    target[:, 2], target[:, 3] = 1, 255
    network = Fixed(torch.zeros(1, 3, 4, 4, 4))
    OBJECTIVES[name](network, batch_of(target, torch.tensor([[True, False]]), half_brain()), 0)[0].backward()
    assert (network.logits.grad[:, 1, 2] < -1e-4).all()
    assert (network.logits.grad[:, :, 3] == 0).all()


def test_a_sequence_that_is_dropped_is_not_asked_where_the_brain_is():
    images = half_brain(num_modalities=2)
    images[:, 1, 2] = 5  # what the second one shows beyond the first
    target, annotated = torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.tensor([[True, False]])
    for shown, num_outside in ((images, 16), (images * torch.tensor([1, 0])[None, :, None, None, None], 32)):
        network = Fixed(torch.zeros(1, 3, 4, 4, 4))
        OBJECTIVES["dice+bce"](network, batch_of(target, annotated, shown), 0)[0].backward()
        assert int((network.logits.grad[:, 2] > 1e-4).sum()) == num_outside


def test_every_scale_knows_the_outside():
    network = Scales(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 2, 2, 2))
    batch = batch_of(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.tensor([[True, False]]), half_brain())
    OBJECTIVES["dice+bce"](network, batch, 0)[0].backward()
    for logits in network.logits:
        half = logits.shape[2] // 2
        assert (logits.grad[:, 2, half:] > 1e-4).all()
        assert (logits.grad[:, 2, :half] <= 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_deep_supervision_is_a_weighted_mean_over_the_scales(name):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 8, 8, 8), generator=generator).to(torch.uint8)
    target[:, :3] = 255
    logits = [torch.randn(2, 3, size, size, size, generator=generator) for size in (8, 4, 2)]
    annotated = torch.tensor([[True, True], [True, False]])
    loss, scalars = OBJECTIVES[name](Scales(*logits), batch_of(target, annotated), 0)
    single = []
    for scale, answer in enumerate(logits):
        stride = 2**scale
        small = batch_of(target[:, ::stride, ::stride, ::stride].contiguous(), annotated)
        single.append(OBJECTIVES[name](Fixed(answer), small, 0))
    weights = [4 / 7, 2 / 7, 1 / 7]
    assert loss.item() == pytest.approx(sum(w * one[0].item() for w, one in zip(weights, single, strict=True)))
    for key, value in scalars.items():
        expected = sum(w * one[1][key].item() for w, one in zip(weights, single, strict=True))
        assert value.item() == pytest.approx(expected)


def test_every_scale_learns_and_the_finest_most():
    network = Scales(*[torch.zeros(2, 1, size, size, size) for size in (4, 2)])
    OBJECTIVES["dice+bce"](network, NO_LESION, 0)[0].backward()
    fine, coarse = (logits.grad.abs().sum().item() for logits in network.logits)
    assert fine > coarse > 0


def test_what_is_ignored_is_ignored_at_every_scale():
    """Codes are picked, not blended: 255 stays 255."""
    target = torch.full((1, 4, 4, 4), 255, dtype=torch.uint8)
    target[:, 0, 0, 0] = 1
    network = Scales(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 2, 2, 2))
    OBJECTIVES["dice+bce"](network, batch_of(target, torch.ones(1, 1, dtype=torch.bool)), 0)[0].backward()
    for logits in network.logits:
        assert torch.nonzero(logits.grad).tolist() == [[0, 0, 0, 0, 0]]


def test_one_scale_is_asked_for_nothing_deep():
    """A network of one scale may say so and not know the word."""
    network = Fixed(torch.zeros(2, 1, 4, 4, 4))
    network.num_scales = 1
    assert OBJECTIVES["dice"](network, NO_LESION, 0)[0].item() > 0


TWO_DATABASES = torch.tensor([[False, True], [True, False]])
"""One case is annotated for label 2 (a lesion), the other for label 1 (a tissue)."""


def test_adaptive_cross_entropy_is_cross_entropy_where_all_is_annotated():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 4, 4, 4), generator=generator).to(torch.uint8)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    loss, _ = OBJECTIVES["ace"](Fixed(logits), batch_of(target, torch.ones(2, 2, dtype=torch.bool)), 0)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, target.long()).item())


def test_on_the_background_of_a_lesion_database_it_is_minus_the_log_of_a_sum():
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = batch_of(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), TWO_DATABASES[:1])
    loss, _ = OBJECTIVES["ace"](Fixed(logits), batch, 0)
    p = torch.softmax(logits, dim=1)
    assert loss.item() == pytest.approx(-(p[:, 0] + p[:, 1]).log().mean().item())


def test_a_false_lesion_in_a_patch_without_lesion_is_punished():
    """Read literally, eq. 4 of Roulet et al. 2019 leaves out the labels that are not in the patch, and so punishes no
    false lesion in a patch without lesion; with the labels of the database it does."""
    logits = torch.zeros(1, 3, 4, 4, 4)
    batch = batch_of(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), TWO_DATABASES[:1])
    of_database, of_patch = Fixed(logits), Fixed(logits)
    OBJECTIVES["ace"](of_database, batch, 0)[0].backward()
    assert (of_database.logits.grad[:, 2] > 1e-4).all()
    labels_in_patch = torch.tensor([[bool((batch.target == label).any()) for label in (1, 2)]])
    OBJECTIVES["ace"](of_patch, replace(batch, annotated=labels_in_patch), 0)[0].backward()
    assert of_patch.logits.grad.abs().max() < 1e-7


def test_the_naive_losses_teach_that_other_databases_have_no_lesion():
    batch = batch_of(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), TWO_DATABASES[1:])
    for name, pushes in (("ace", False), ("naive_ce", True), ("naive_dice", True)):
        network = Fixed(torch.zeros(1, 3, 4, 4, 4))
        OBJECTIVES[name](network, batch, 0)[0].backward()
        assert bool((network.logits.grad[:, 2] > 1e-10).all()) == pushes, name


SQUARED = {"joint_jaccard": False, "joint_jaccard_squared": True}


def test_lesions_share_one_half_and_tissues_the_other():
    weights = weights_by_kind(7, tissues=(1, 2, 3, 4, 5, 6))
    assert weights.tolist() == pytest.approx([1 / 2, *[1 / 12] * 6])
    assert weights_by_kind(4, tissues=(0, 3)).tolist() == [0.25] * 4
    assert weights_by_kind(2, tissues=()).tolist() == [0.5, 0.5]
    assert weights_by_kind(5, tissues=range(5)).tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("name", SQUARED)
def test_the_risks_by_hand(name):
    """One voxel in eight is tissue, or lesion in the other case; each of three classes has p = 1/3.

    D = 2/3 + 7/3 = 3 and S = 8/3 + 1, so J = 6 / (20/3) = 0.9; squared: 1 - (1/3) / (1 + 8/9 - 1/3) = 11/14.
    """
    target = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    target[0, 0, 0, 0], target[1, 0, 0, 0] = 1, 2
    batch = batch_of(target, torch.tensor([[True, False], [False, True]]))
    batch = replace(batch, tissues=(1,))
    loss, scalars = OBJECTIVES[name](Fixed(torch.zeros(2, 3, 2, 2, 2)), batch, 0)
    expected = (11 / 14 if SQUARED[name] else 0.9) / 2
    assert scalars["lesion_risk"].item() == pytest.approx(expected, abs=1e-4)
    assert scalars["tissue_risk"].item() == pytest.approx(expected, abs=1e-4)
    assert scalars["outside_brain"] == 0
    assert loss.item() == pytest.approx(2 * expected, abs=1e-4)


def test_each_case_counts_for_what_it_was_searched_for_alone():
    batch = batch_of(torch.zeros(2, 4, 4, 4, dtype=torch.uint8), torch.tensor([[True, False], [False, True]]))
    batch.target[0, 0], batch.target[1, 0] = 1, 2
    network = Fixed(torch.zeros(2, 3, 4, 4, 4))
    loss, _ = OBJECTIVES["joint_jaccard"](network, replace(batch, tissues=(1,)), 0)
    loss.backward()
    lesion, tissue = network.logits.grad[0], network.logits.grad[1]
    assert (lesion[1, 1:] > 1e-5).all()
    assert (lesion[[0, 2], 1:] < 0).all()
    torch.testing.assert_close(lesion[0], lesion[2])  # the unsearched tissue is treated as background is
    assert (tissue[2, 1:] > 1e-5).all()
    assert (tissue[[0, 1], 1:] < 0).all()


def test_a_structure_that_no_patch_was_searched_for_leaves_the_others_their_weights():
    target = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    target[0, 0, 0, 0] = 1
    batch = replace(batch_of(target, torch.tensor([[True, False]])), tissues=(1,))
    loss, scalars = OBJECTIVES["joint_jaccard"](Fixed(torch.zeros(1, 3, 2, 2, 2)), batch, 0)
    assert loss.item() == pytest.approx(0.45, abs=1e-4)
    assert scalars["tissue_risk"] == 0


def test_a_space_of_one_kind_has_one_risk():
    batch = batch_of(torch.zeros(1, 2, 2, 2, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.bool))
    _, scalars = OBJECTIVES["joint_jaccard"](Fixed(torch.zeros(1, 1, 2, 2, 2)), batch, 0)
    assert list(scalars) == ["lesion_risk", "outside_brain"]


def test_weights_of_classes_by_hand():
    """Two voxels: background with p = 0.5 and weight 1, a lesion with p = 0.25 and weight 3."""
    logits = torch.tensor([0.0, float(torch.tensor(1 / 3).log())]).reshape(1, 1, 2, 1, 1)
    target = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 2, 1, 1)
    batch = batch_of(target, torch.ones(1, 1, dtype=torch.bool))
    loss, _ = OBJECTIVES["ace"](Fixed(logits), batch, 0, weights=torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((0.693147 + 3 * 1.386294) / 4, abs=1e-5)
    ignored = replace(batch, target=torch.full_like(target, 255))
    assert OBJECTIVES["ace"](Fixed(logits), ignored, 0, weights=torch.tensor([1.0, 3.0]))[0].item() == 0
