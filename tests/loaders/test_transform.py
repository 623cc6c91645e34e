from dataclasses import replace

import pytest
import torch

from multiseg.errors import UsageError
from multiseg.loaders.augment import AugmentOptions, augmenter
from multiseg.loaders.batches import Batch
from multiseg.loaders.transform import transform_named, transformed


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 4, 4, 4, generator=draws)
    present = torch.tensor([[True, True], [True, False], [True, True]])
    images[~present] = 0
    return Batch(
        images=images,
        present=present,
        target=torch.randint(2, (3, 4, 4, 4), dtype=torch.uint8, generator=draws),
        annotated=torch.ones(3, 1, dtype=torch.bool),
        database=("a",) * 3,
        case=("1", "2", "3"),
        corner=torch.zeros(3, 3, dtype=torch.int64),
        draws=torch.tensor([[0, 4], [0, 5], [1, 4]]),
    )


def noisy(images, target, generator):
    return images + torch.rand(images.shape, generator=generator), target


def careless(images, target, generator):
    return images + torch.rand(images.shape), target


@pytest.mark.parametrize("own", [noisy, careless])
def test_a_patch_depends_on_its_own_number_and_the_seed_alone(batch, own):
    whole = transformed(batch, own, seed=1).images
    alone = replace(
        batch,
        **{name: getattr(batch, name)[1:2] for name in ("images", "present", "target", "annotated", "corner", "draws")},
    )
    torch.manual_seed(99)
    assert torch.equal(transformed(alone, own, seed=1).images[0], whole[1])
    added = whole - batch.images
    assert not torch.allclose(added[0], added[2], atol=1e-3)  # of another epoch
    assert not torch.equal(whole, transformed(batch, own, seed=2).images)


def test_global_random_numbers_and_the_batch_stay_as_they_were(batch):
    before, images = torch.get_rng_state(), batch.images.clone()
    transformed(batch, careless, seed=1)
    assert torch.equal(torch.get_rng_state(), before)

    def spoils(images, target, generator):
        return images.fill_(7), target.fill_(1)

    assert transformed(batch, spoils, seed=1).images[0].eq(7).all()
    assert torch.equal(batch.images, images)


def test_an_absent_sequence_stays_absent(batch):
    found = transformed(batch, noisy, seed=1)
    assert found.images[1, 1].eq(0).all()
    assert found.images[1, 0].ne(batch.images[1, 0]).any()


def test_it_comes_after_the_house_s_own(batch):
    seen = []

    def look(images, target, generator):
        seen.append(images)
        return images, target

    augmenter(AugmentOptions(flip_probability=1.0), look)(batch)
    assert torch.equal(seen[0], batch.images[0].flip(1))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda i, t, g: i, "returned Tensor: return .images, target., two tensors"),
        (lambda i, t, g: (i[:, 1:], t), r"images of \(2, 3, 4, 4\) torch.float32: return \(2, 4, 4, 4\)"),
        (lambda i, t, g: (i.double(), t), "torch.float64: return"),
        (lambda i, t, g: (i, t.float()), "target of .* torch.float32: return .* torch.uint8"),
        (lambda i, t, g: (i, t + 7), r"the labels \[7, 8\], which the patch did not have"),
    ],
)
def test_an_answer_of_another_form_is_refused(batch, own, said):
    with pytest.raises(UsageError, match=said):
        transformed(batch, own, seed=1)


def test_a_target_may_become_background_or_unseen(batch):
    found = transformed(batch, lambda i, t, g: (i, t.clone().fill_(255)), seed=1)
    assert found.target.eq(255).all()


def test_a_name_is_looked_up_when_the_training_begins():
    assert transform_named("multiseg.loaders.transform:transformed")
    with pytest.raises(UsageError, match=r"does not take \(images, target, generator\)"):
        augmenter(AugmentOptions(own="torch:manual_seed"))
