"""Moving a patch: one grid for images and labels, known turns, hard edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.loaders.separable import cubic_splines, num_controls, smooth_field
from multiseg.loaders.spatial import Elastic, Movement, _displacement, move, permutation, rotation

STILL = np.eye(3, 4)


def patch_of(size=(8, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, *size, generator=generator)
    target = torch.randint(0, 3, size, generator=generator).to(torch.uint8)
    return images, target


def affine(matrix, shift=(0.0, 0.0, 0.0)):
    return np.column_stack([matrix, shift])


@pytest.mark.parametrize(("about", "plane"), [(0, (2, 1)), (1, (2, 0)), (2, (1, 0))])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotation_by_quarter_turns_is_rot90_for_images_and_labels(about, plane, turns):
    images, target = patch_of()
    degrees = tuple(90.0 * turns if axis == about else 0.0 for axis in range(3))
    found = move(images, target, Movement(affine=affine(rotation(degrees))))
    expected = [torch.rot90(volume, turns, [axis - 3 for axis in plane]) for volume in (images, target)]
    clockwise = [torch.rot90(volume, -turns, [axis - 3 for axis in plane]) for volume in (images, target)]
    assert any(torch.equal(found[1], one) for one in (expected[1], clockwise[1]))
    which = expected if torch.equal(found[1], expected[1]) else clockwise
    torch.testing.assert_close(found[0], which[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(8, 8, 8), (6, 9, 8)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "flips", [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]
)
def test_copying_and_the_grid_agree(size, turns, flips):
    images, target = patch_of(size)
    movement = Movement(flips=flips, quarter_turns=turns)
    copied, copied_target = move(images, target, movement)
    resampled, resampled_target = move(images, target, Movement(flips=flips, quarter_turns=turns, affine=STILL))
    assert torch.equal(copied_target, resampled_target)
    torch.testing.assert_close(copied, resampled, atol=1e-4, rtol=0)


def test_a_quarter_turn_of_an_oblong_window_by_hand():
    """2 x 1 x 4 voxels turn to 4 x 1 x 2, of which the middle two rows stay; what is missing is absent."""
    images = torch.arange(1.0, 9.0).reshape(1, 2, 1, 4)
    found, target = move(images, images[0].to(torch.uint8), Movement(quarter_turns=1))
    # rot90 has the rows [4 8] [3 7] [2 6] [1 5].
    assert found[0, :, 0].tolist() == [[0, 3, 7, 0], [0, 2, 6, 0]]
    assert target[:, 0].tolist() == [[255, 3, 7, 255], [255, 2, 6, 255]]


def test_a_shift_by_hand():
    """The result's voxel n is the patch's voxel n + 1.25: three quarters of the next, a quarter of the one after."""
    images = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1, 1)
    target = torch.tensor([0, 1, 2, 3], dtype=torch.uint8).reshape(4, 1, 1)
    found, labels = move(images, target, Movement(affine=affine(np.eye(3), (1.25, 0, 0))))
    # The third voxel has only its three quarters in the window, and is divided by them; the last has none.
    assert found.flatten().tolist() == pytest.approx([2.5, 5.0, 8.0, 0.0], abs=1e-5)
    assert labels.flatten().tolist() == [1, 2, 3, 255]


def test_the_edge_of_the_brain_stays_hard():
    """Linear interpolation would put 1.5 between 3 and the background's 0."""
    images = torch.tensor([3.0, 3.0, 3.0, 0.0, 0.0, 0.0]).reshape(1, 6, 1, 1)
    target = torch.zeros(6, 1, 1, dtype=torch.uint8)
    for shift, expected in ((0.4, [3, 3, 3, 0, 0, 0]), (0.6, [3, 3, 0, 0, 0, 0])):
        found, _ = move(images, target, Movement(affine=affine(np.eye(3), (shift, 0, 0))))
        assert found.flatten().tolist() == pytest.approx(expected, abs=1e-4)


movements = st.builds(
    lambda angles, scale, shift, flips, turns, elastic: Movement(
        flips=flips,
        quarter_turns=turns,
        affine=affine(rotation(angles) * scale, shift),
        elastic=Elastic(3.0, 8.0, 5) if elastic else None,
    ),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.floats(0.7, 1.4),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(movements)
def test_a_label_stays_on_its_image(movement):
    """The image shows 1 in the blob and 2 around it; away from the edge, where both mix, it tells the label."""
    i, j, k = torch.meshgrid(*[torch.arange(20.0)] * 3, indexing="ij")
    blob = ((i - 6) ** 2 + (j - 11) ** 2 + (k - 8) ** 2) < 20
    images = torch.where(blob, 1.0, 2.0)[None]
    found, target = move(images, blob.to(torch.uint8), movement)
    inside = target != 255
    pure = inside & ((found[0] - found[0].round()).abs() < 1e-3)
    assert (found[0][pure] == 0).sum() <= (~pure).sum() + 400, "all but the window's rim"
    shown = pure & (found[0].round() != 0)
    assert shown.sum() > 500
    assert torch.equal(target[shown] == 1, found[0][shown].round() == 1)
    assert (found[0][~inside] == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 4), st.integers(8, 20))
def test_no_voxel_moves_further_than_said(seed, voxels, spacing):
    controls = torch.empty(1, *[num_controls(n, float(spacing)) for n in (9, 14, 6)])
    controls.uniform_(-voxels, voxels, generator=torch.Generator().manual_seed(seed))
    field = smooth_field(controls, (9, 14, 6), float(spacing))
    assert field.shape == (1, 9, 14, 6)
    assert field.abs().max() <= voxels


def test_cubic_splines_by_hand():
    """At a control the neighbours weigh 1/6, 2/3, 1/6; half way between two 1/48, 23/48, 23/48, 1/48."""
    splines = cubic_splines(3, 2.0, torch.device("cpu"))
    assert splines.shape == (3, num_controls(3, 2.0)) == (3, 5)
    assert splines[0].tolist() == pytest.approx([1 / 6, 2 / 3, 1 / 6, 0, 0], abs=1e-6)
    assert splines[1].tolist() == pytest.approx([1 / 48, 23 / 48, 23 / 48, 1 / 48, 0], abs=1e-6)
    assert splines[2].tolist() == pytest.approx([0, 1 / 6, 2 / 3, 1 / 6, 0], abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 17, 33])
def test_splines_reach_every_voxel(size):
    splines = cubic_splines(size, 16.0, torch.device("cpu"))
    torch.testing.assert_close(splines.sum(1), torch.ones(size))
    assert (splines.sum(0)[:-1] > 0).all(), "no control but the last, which may lie beyond, is drawn for nothing"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_elastic_deformation_does_not_fold(seed):
    """An image that is its own coordinate still ascends along it, at the largest amplitude that is allowed."""
    ramp = torch.arange(1.0, 25.0)[:, None, None].expand(24, 24, 24)[None]
    movement = Movement(elastic=Elastic(0.4 * 8, 8.0, seed))
    found, _ = move(ramp.contiguous(), torch.zeros(24, 24, 24, dtype=torch.uint8), movement)
    core = found[0, 4:-4, 4:-4, 4:-4]
    assert (core.diff(dim=0) > 0).all()
    assert (core - ramp[0, 4:-4, 4:-4, 4:-4]).abs().max() > 0.2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_moves_by_its_own_part_of_the_field(axis):
    """An image that is its own coordinate shows where each voxel came from."""
    size, elastic = (14, 17, 12), Elastic(3.0, 8.0, 1)
    own = torch.meshgrid(*[torch.arange(1.0, n + 1) for n in size], indexing="ij")[axis]
    found, target = move(own[None], torch.zeros(size, dtype=torch.uint8), Movement(elastic=elastic))
    field = _displacement(elastic, size, torch.device("cpu"))[axis]
    core = (slice(4, -4),) * 3
    assert (target[core] == 0).all()
    torch.testing.assert_close(found[0][core] - own[core], field[core], atol=1e-4, rtol=0)


def test_matrices_of_turns():
    assert permutation(Movement(quarter_turns=2)).tolist() == [[-1, 0, 0], [0, 1, 0], [0, 0, -1]]
    assert permutation(Movement(flips=(True, False, False))).tolist() == [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]
    turned = rotation((10.0, -20.0, 70.0))
    assert turned @ turned.T == pytest.approx(np.eye(3))
    assert np.linalg.det(turned) == pytest.approx(1)
    assert rotation((0.0, 0.0, 90.0)) @ [1, 0, 0] == pytest.approx([0, 1, 0])
