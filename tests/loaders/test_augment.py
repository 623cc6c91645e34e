"""The whole augmentation of a batch: what is drawn, for whom, and what must never happen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from multiseg.errors import UsageError
from multiseg.loaders.augment import (
    PRESETS,
    TRANSFORMS,
    AugmentOptions,
    augment,
    draw,
    preset,
    published,
    standard,
)
from multiseg.loaders.batches import Batch

EVERYTHING = AugmentOptions(**dict.fromkeys(TRANSFORMS, 1.0), translation_voxels=2.0, elastic_spacing_voxels=10.0)
INTENSITIES = [name for name in TRANSFORMS if name.split("_")[0] not in ("rotate90", "flip", "affine", "elastic")]
SIZES = [(8, 8, 8), (6, 9, 7)]


def batch_of(num=3, size=(8, 8, 8), seed=0, present=None, dtype=torch.float32):
    """Noise inside a box of brain, 0 around it; labels 0, 1, 2 and 255; the middle channel absent."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, 3, *size, generator=generator) + 0.3
    images[:, :, :2] = 0
    images[:, :, :, -2:] = 0
    there = torch.tensor([[True, False, True]] * num) if present is None else present
    images[~there] = 0
    target = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[torch.randint(0, 4, (num, *size), generator=generator)]
    return Batch(
        images=images.to(dtype),
        present=there,
        target=target,
        annotated=torch.ones(num, 1, dtype=torch.bool),
        database=("ms",) * num,
        case=tuple(f"P{at}" for at in range(num)),
        corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.stack([torch.full((num,), 2), torch.arange(5, 5 + num)], dim=1),
    )


def permuted(batch, order):
    names = ("images", "present", "target", "annotated", "corner", "draws")
    return replace(batch, **{name: getattr(batch, name)[order] for name in names})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_none_changes_nothing(dtype):
    batch = batch_of(dtype=dtype)
    done = augment(batch, AugmentOptions())
    assert done.images.dtype == torch.float32
    assert torch.equal(done.images, batch.images.float())
    assert torch.equal(done.target, batch.target)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SIZES), st.sampled_from([standard(), published(), EVERYTHING]))
def test_what_must_never_happen(index, size, options):
    batch = batch_of(num=2, size=size, seed=index, dtype=torch.float16)
    batch = replace(batch, draws=batch.draws + torch.tensor([0, index]))
    before = batch.images.clone(), batch.target.clone()
    done = augment(batch, options)
    assert torch.equal(batch.images, before[0])
    assert torch.equal(batch.target, before[1])
    assert done.images.dtype == torch.float32
    assert done.target.dtype == torch.uint8
    assert done.images.shape == batch.images.shape
    assert done.images.isfinite().all()
    assert (done.images[~batch.present] == 0).all()
    for old, new in zip(batch.target, done.target, strict=True):
        assert set(new.unique().tolist()) <= {*old.unique().tolist(), 255}
    assert (done.present is batch.present, done.case, done.draws is batch.draws) == (True, batch.case, True)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4), st.integers(0, 1000))
def test_a_patch_has_its_own_draws_wherever_it_stands(order, num, seed):
    batch, options = batch_of(num=4), replace(EVERYTHING, seed=seed)
    whole, part = augment(batch, options), augment(permuted(batch, order[:num]), options)
    assert torch.equal(part.images, whole.images[order[:num]])
    assert torch.equal(part.target, whole.target[order[:num]])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"draws": torch.tensor([[3, 5]])}, {"draws": torch.tensor([[2, 6]])}])
def test_seed_epoch_and_index_each_make_another_draw(changed):
    batch = batch_of(num=1)
    options = replace(EVERYTHING, seed=changed.get("seed", 0))
    other = replace(batch, draws=changed.get("draws", batch.draws))
    assert not torch.equal(augment(batch, EVERYTHING).images, augment(other, options).images)


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    augment(batch_of(), EVERYTHING)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_it_works_with_and_without_gradients():
    with torch.no_grad():
        without = augment(batch_of(), EVERYTHING)
    assert torch.equal(without.images, augment(batch_of(), EVERYTHING).images)
    assert not augment(batch_of(), EVERYTHING).images.requires_grad


@pytest.mark.parametrize("name", INTENSITIES)
def test_each_intensity_transform_keeps_background_and_labels_and_changes_the_brain(name):
    batch = batch_of()
    done = augment(batch, AugmentOptions(**{name: 1.0}))
    assert torch.equal(done.images == 0, batch.images == 0)
    assert torch.equal(done.target, batch.target)
    for at, channel in ((0, 0), (0, 2), (2, 0)):
        assert not torch.equal(done.images[at, channel], batch.images[at, channel])
    assert not torch.equal(done.images[0, 0] - batch.images[0, 0], done.images[0, 2] - batch.images[0, 2]), (
        "each sequence has its own"
    )


@pytest.mark.parametrize(
    "strengthless",
    [
        {"affine_probability": 1.0, "rotation_degrees": 0.0, "scaling": (1.0, 1.0)},
        {"elastic_probability": 1.0, "elastic_voxels": 0.0},
        {"gamma_probability": 1.0, "gamma": (1.0, 1.0)},
        {"contrast_probability": 1.0, "contrast": (1.0, 1.0)},
        {"brightness_probability": 1.0, "brightness": (0.0, 0.0)},
        {"bias_probability": 1.0, "bias_strength": (0.0, 0.0)},
        {"blur_probability": 1.0, "blur_sigma_voxels": (0.1, 0.1)},
        {"low_resolution_probability": 1.0, "low_resolution": (1.0, 1.0)},
        {"noise_probability": 1.0, "noise_std": (0.0, 0.0)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_at_no_strength_nothing_happens(strengthless):
    batch = batch_of()
    done = augment(batch, AugmentOptions(**strengthless))
    torch.testing.assert_close(done.images, batch.images, atol=2e-5, rtol=1e-5)
    assert torch.equal(done.images == 0, batch.images == 0)
    assert torch.equal(done.target, batch.target)


def test_where_no_movement_is_drawn_not_a_bit_changes():
    batch = batch_of(num=8)
    options = AugmentOptions(affine_probability=0.5)
    moved = [draw(options, 2, index, 3)[0] is not None for index in range(5, 13)]
    assert 0 < sum(moved) < 8
    done = augment(batch, options)
    for at, was_moved in enumerate(moved):
        assert torch.equal(done.images[at], batch.images[at]) != was_moved
        assert torch.equal(done.target[at], batch.target[at]) != was_moved


def test_a_flip_by_hand_and_twice():
    batch = batch_of(size=(6, 9, 7))
    options = AugmentOptions(flip_probability=1.0, flip_axes=("i", "k"))
    once = augment(batch, options)
    assert torch.equal(once.images, batch.images.flip(2, 4))
    assert torch.equal(once.target, batch.target.flip(1, 3))
    twice = augment(once, options)
    assert torch.equal(twice.images, batch.images)
    assert torch.equal(twice.target, batch.target)


@pytest.mark.slow
def test_only_the_named_axes_are_flipped_each_by_itself():
    options = AugmentOptions(flip_probability=0.5, flip_axes=("i", "k"))
    drawn = [draw(options, 0, index, 1)[0] for index in range(2000)]
    flips = [(False, False, False) if movement is None else movement.flips for movement in drawn]
    counts = [flips.count((i, False, k)) for i in (False, True) for k in (False, True)]
    assert sum(counts) == 2000
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.slow
def test_the_published_rotation_has_its_law():
    """Nine in ten stay, the rest has one, two or three quarter turns alike; nothing else is ever drawn."""
    turns = []
    for index in range(6000):
        movement, adjustments = draw(published(), 1, index, 4)
        assert all(adjustment.is_none for adjustment in adjustments)
        turns.append(0 if movement is None else movement.quarter_turns)
        if movement is not None:
            assert (movement.flips, movement.plane) == ((False, False, False), (0, 2))
            assert movement.affine is None
            assert movement.elastic is None
    counts = [turns.count(n) for n in range(4)]
    assert chisquare(counts, [5400, 200, 200, 200]).pvalue > 1e-3


def test_the_published_rotation_is_in_the_plane_of_i_and_k():
    batch = batch_of(num=1)
    options = replace(published(), rotate90_probability=1.0)
    done = augment(batch, options)
    turns = draw(options, 2, 5, 1)[0].quarter_turns
    assert torch.equal(done.images, torch.rot90(batch.images, turns, (2, 4)))
    assert torch.equal(done.target, torch.rot90(batch.target, turns, (1, 3)))


def test_probabilities_are_those_of_each_sequence():
    options = standard()
    drawn = [adjustment for index in range(500) for adjustment in draw(options, 0, index, 4)[1]]
    for name, probability in (("gamma", 0.15), ("bias", 0.15), ("coarse", 0.1), ("noise", 0.15)):
        count = sum(getattr(adjustment, name) is not None for adjustment in drawn)
        expected = len(drawn) * probability
        assert chisquare([count, len(drawn) - count], [expected, len(drawn) - expected]).pvalue > 1e-4, name


@pytest.mark.slow
def test_numbers_stay_in_their_ranges_and_fill_them():
    options = replace(EVERYTHING, rotation_degrees=(0.0, 0.0, 10.0), scaling=(0.5, 2.0))
    drawn = [draw(options, 0, index, 1) for index in range(600)]
    gammas = np.array([adjustment.gamma for _, (adjustment,) in drawn])
    assert (gammas.min() >= 0.7, gammas.max() <= 1.4) == (True, True)
    assert (gammas.min() < 0.72, gammas.max() > 1.37) == (True, True)
    matrices = np.stack([movement.affine[:, :3] for movement, _ in drawn])
    scalings = np.linalg.det(matrices) ** (-1 / 3)
    assert (scalings.min() >= 0.5 - 1e-9, scalings.max() <= 2 + 1e-9) == (True, True)
    assert abs(np.log(scalings).mean()) < 0.06, "as often enlarged as reduced"
    turned = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(matrices[:, 2, :2]).max() < 1e-9, "about k alone"
    assert 9.8 < np.abs(turned).max() <= 10 + 1e-9
    shifts = np.abs([movement.affine[:, 3] for movement, _ in drawn])
    assert 1.95 < shifts.max() <= 2
    assert {adjustment.coarse.axes for _, (adjustment,) in drawn} == {
        (True, False, False), (False, True, False), (False, False, True), (True, True, True)
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "gamma_probability"])
def test_switching_one_transform_changes_no_other(name):
    whole, without = draw(EVERYTHING, 0, 1, 2), draw(replace(EVERYTHING, **{name: 0.0}), 0, 1, 2)
    assert [one.gamma for one in whole[1]] == [one.gamma for one in without[1]]
    if name != "noise_probability":
        assert [one.noise for one in whole[1]] == [one.noise for one in without[1]]


def test_a_sequence_has_the_same_draws_on_an_axis_that_grew():
    """Channels are only ever added at the axis' end."""
    few, more = draw(EVERYTHING, 0, 1, 2), draw(EVERYTHING, 0, 1, 5)
    assert [one.noise for one in few[1]] == [one.noise for one in more[1][:2]]
    assert (few[0].affine == more[0].affine).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise_probability": 1.5}, r"augment\.noise_probability is 1\.5: give a number between 0 and 1"),
        ({"scaling": (1.2, 0.8)}, r"augment\.scaling is \[1\.2, 0\.8\]: .* 0\.1 or more"),
        ({"gamma": (0.0, 1.0)}, r"augment\.gamma is \[0\.0, 1\.0\]: .* 0\.1 or more"),
        ({"flip_axes": ("x",)}, r"axes x, i, k: the axes are i, j, k"),
        ({"rotate90_plane": ("i", "i")}, "a plane has two"),
        (
            {"elastic_voxels": 7.0},
            r"elastic_voxels is 7\.0, but may be at most 0\.4 of elastic_spacing_voxels \(16\.0\)",
        ),
        ({"seed": -1}, "augment has seed -1"),
    ],
)
def test_numbers_out_of_range_are_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        AugmentOptions(**wrong)


def test_presets_know_their_names():
    assert [options.preset for options in PRESETS.values()] == list(PRESETS)
    assert [preset(name).changes_something for name in ("none", "published", "standard")] == [False, True, True]
    with pytest.raises(UsageError, match=r"augment\.preset is 'all': give one of none, published, standard"):
        preset("all")
