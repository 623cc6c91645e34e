"""Grids in space: what is copied is copied exactly, what is interpolated stays in its place."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from multiseg.store.preparation.boxes import box_at, box_of
from multiseg.store.preparation.grids import Grid, resample, resample_codes, sample_foreground

SHAPE = (14, 12, 10)
TILTED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.15) * [1.0, 1.2, 2.0], [-8.0, 5.0, 3.0])


def ramp(grid: Grid) -> np.ndarray:
    """An image whose value is a linear function of the place in space."""
    ijk = np.moveaxis(np.indices(grid.shape), 0, -1)
    xyz = ijk @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return (100 + xyz @ np.array([1.0, -2.0, 0.5])).astype(np.float32)


def blob(shape: tuple[int, int, int], scale: float = 1.0) -> np.ndarray:
    """An ellipsoid around the middle."""
    at = (np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2) / (np.array(shape) * 0.38 * scale)
    return (np.linalg.norm(at, axis=-1) < 1).astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_the_same_grid_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    np.testing.assert_array_equal(resample(values, Grid(TILTED, SHAPE), Grid(TILTED.copy(), SHAPE)), values)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(-16, 16)] * 3), st.tuples(*[st.integers(1, 16)] * 3))
def test_whole_voxels_are_copied_and_beyond_is_0(corner: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    values = np.random.default_rng(1).normal(100, 1, SHAPE).astype(np.float32)
    source = Grid(TILTED, SHAPE)
    moved = resample(values, source, source.cropped(corner, shape))
    padded = np.pad(values, [(32, 32)] * 3)
    part = tuple(slice(32 + c, 32 + c + n) for c, n in zip(corner, shape, strict=True))
    np.testing.assert_array_equal(moved, padded[part])


def test_flipped_axes_are_exact() -> None:
    values = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    flipped = TILTED.copy()
    flipped[:3, 0] *= -1
    flipped[:3, 3] += TILTED[:3, 0] * (SHAPE[0] - 1)
    np.testing.assert_allclose(resample(values, Grid(TILTED, SHAPE), Grid(flipped, SHAPE)), values[::-1], atol=1e-5)


@pytest.mark.parametrize("spacing", [(0.7, 0.9, 1.1), (2.0, 2.0, 2.0), (1.0, 1.2, 2.0)])
def test_a_ramp_stays_a_ramp(spacing: tuple[float, float, float]) -> None:
    source = Grid(TILTED, (24, 22, 20))
    target = source.respaced(spacing)
    moved = resample(ramp(source), source, target)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(moved[inner], ramp(target)[inner], atol=0.05)


def test_a_ramp_stays_a_ramp_across_tilted_grids() -> None:
    source = Grid(TILTED, (24, 24, 20))
    centre = TILTED @ [12, 12, 10, 1]
    target = Grid(nib.affines.from_matvec(np.eye(3), centre[:3] - 4), (9, 9, 9))
    np.testing.assert_allclose(resample(ramp(source), source, target), ramp(target), atol=0.01)


def test_respacing_keeps_the_box_of_space() -> None:
    source = Grid(TILTED, SHAPE)
    target = source.respaced((2.0, 2.0, 2.0))
    assert target.shape == (7, 7, 10)
    np.testing.assert_allclose(target.spacing_mm, (2, 2, 2))
    middle = [TILTED @ [*((np.array(SHAPE) - 1) / 2), 1], target.affine @ [*((np.array(target.shape) - 1) / 2), 1]]
    np.testing.assert_allclose(*middle)
    assert target.respaced((2.0, 2.0, 2.0)) is target


def test_coverage() -> None:
    source = Grid(TILTED, SHAPE)
    assert source.coverage(source) == 1
    assert source.coverage(source.cropped((7, 0, 0), SHAPE)) == pytest.approx(0.5)
    assert source.coverage(source.cropped((40, 0, 0), SHAPE)) == 0


def test_fine_detail_is_smoothed_away_but_masks_are_not() -> None:
    fine = Grid(np.eye(4), (32, 32, 32))
    checks = (np.indices(fine.shape).sum(axis=0) % 2).astype(np.float32)
    coarse = Grid(np.diag([4.0, 4.0, 4.0, 1.0]), (8, 8, 8))
    assert resample(checks, fine, coarse)[2:-2, 2:-2, 2:-2].std() < 0.01
    assert set(np.unique(resample(checks, fine, coarse, smooth=False))) <= {0.0, 1.0}


@pytest.mark.parametrize("spacing", [1.3, 2.0])
def test_labels_keep_their_volumes(spacing: float) -> None:
    codes = blob((40, 44, 36)) + blob((40, 44, 36), 0.5)
    codes[2, 2, 2] = 255
    source = Grid(np.diag([1.0, 1.0, 1.0, 1.0]), codes.shape)
    target = source.respaced((spacing,) * 3)
    moved = resample_codes(codes, source, target)
    assert set(np.unique(moved)) <= {0, 1, 2, 255}
    for code in (1, 2):
        ml = np.count_nonzero(moved == code) * spacing**3
        assert ml == pytest.approx(np.count_nonzero(codes == code), rel=0.05)


def test_codes_win_by_their_share() -> None:
    """A target voxel a quarter of the way from code 1 to code 2 is 1; half a voxel beyond the box is 0."""
    codes = np.zeros((4, 1, 1), dtype=np.uint8)
    codes[:, 0, 0] = 1, 2, 0, 3
    source = Grid(np.eye(4), codes.shape)
    affine = np.eye(4)
    affine[0, 3] = 0.25
    assert resample_codes(codes, source, Grid(affine, codes.shape)).ravel().tolist() == [1, 2, 0, 3]
    affine[0, 3] = 0.75
    assert resample_codes(codes, source, Grid(affine, codes.shape)).ravel().tolist() == [2, 0, 3, 0]


def test_equal_shares_favour_neither_side() -> None:
    """A plate one voxel thick fills half of each voxel of twice the size: half of those take it."""
    codes = np.zeros((16, 16, 16), dtype=np.uint8)
    codes[8] = 1
    source = Grid(np.eye(4), codes.shape)
    moved = resample_codes(codes, source, source.respaced((2.0, 2.0, 2.0)))
    assert np.count_nonzero(moved) * 8 == np.count_nonzero(codes)
    codes[9] = 2
    moved = resample_codes(codes, source, source.respaced((2.0, 2.0, 2.0)))
    assert [np.count_nonzero(moved == code) for code in (1, 2)] == [32, 32]


def test_there_and_back_again_is_nearly_the_same() -> None:
    codes = blob((88, 96, 80))
    fine = Grid(TILTED / np.array([1.0, 1.2, 2.0, 1.0]), codes.shape)
    coarse = fine.respaced((2.0, 2.0, 2.0))
    back = resample_codes(resample_codes(codes, fine, coarse), coarse, fine)
    assert dice(codes == 1, back == 1) >= 0.98


def test_the_box_of_a_mask() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    assert box_of(mask) is None
    mask[3:5, 2, 7:10] = True
    assert box_of(mask) == box_at((3, 2, 7), (2, 1, 3))


def test_sampled_foreground_lies_in_its_structure() -> None:
    codes = ndimage.zoom(np.random.default_rng(3).integers(0, 4, (5, 5, 5)).astype(np.uint8), 3, order=0)
    codes[codes == 2] = 0
    codes[0] = 255
    counts, points = sample_foreground(codes, 4, 50, seed=5)
    assert counts.tolist() == [np.count_nonzero(codes == n) for n in (1, 2, 3, 4)]
    for at, code in enumerate((1, 2, 3, 4)):
        found = points[at][points[at, :, 0] >= 0]
        assert len(found) == min(50, counts[at])
        assert len(np.unique(found, axis=0)) == len(found)
        assert all(codes[tuple(voxel)] == code for voxel in found)
    np.testing.assert_array_equal(points, sample_foreground(codes, 4, 50, seed=5)[1])


RAS_ORNT = nib.orientations.axcodes2ornt("RAS")
ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_order_and_direction_of_the_axes_is_copied_exactly(codes: str) -> None:
    """An RAS image brought onto its own voxels in another order, and back."""
    values = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    ornt = nib.orientations.axcodes2ornt(codes)
    home = Grid(TILTED, SHAPE)
    turned = nib.orientations.apply_orientation(values, nib.orientations.ornt_transform(RAS_ORNT, ornt))
    undo = nib.orientations.inv_ornt_aff(nib.orientations.ornt_transform(RAS_ORNT, ornt), SHAPE)
    other = Grid(TILTED @ undo, turned.shape)
    assert home.shares_lattice(other)
    np.testing.assert_array_equal(resample(values, home, other), turned)
    np.testing.assert_array_equal(resample(turned, other, home), values)
    codes_there = resample_codes((values > 1).astype(np.uint8), home, other)
    np.testing.assert_array_equal(codes_there, (turned > 1).astype(np.uint8))


@pytest.mark.parametrize("spacing", [(0.7, 0.9, 1.1), (2.0, 2.6, 2.0), (1.0, 3.0, 5.0)])
def test_resampling_is_what_scipy_makes_of_it(spacing: tuple[float, float, float]) -> None:
    values = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    source = Grid(TILTED, SHAPE)
    target = source.respaced(spacing).cropped((1, 1, 0), (4, 3, 2))
    matrix, offset = source.voxel_map(target)
    sigma = np.maximum(0, (np.diag(matrix) - 1) / 2)
    smoothed = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.0)
    expected = ndimage.affine_transform(smoothed, matrix, offset, target.shape, order=1, mode="nearest")
    np.testing.assert_allclose(resample(values, source, target), expected, atol=2e-6)


def test_tilted_resampling_is_what_scipy_makes_of_it() -> None:
    values = np.random.default_rng(6).normal(size=SHAPE).astype(np.float32)
    source = Grid(TILTED, SHAPE)
    target = Grid(nib.affines.from_matvec(np.eye(3) * 1.1, source.centre - 9), (16, 17, 18))
    matrix, offset = source.voxel_map(target)
    expected = ndimage.affine_transform(values, matrix, offset, target.shape, order=1, mode="nearest")
    inside = source.contains(target)
    assert 0.2 < inside.mean() < 0.9
    moved = resample(values, source, target, smooth=False)
    np.testing.assert_allclose(moved[inside], expected[inside], atol=1e-5)
    assert not moved[~inside].any()


def test_a_sheared_grid_becomes_the_nearest_one_at_right_angles() -> None:
    """Axes 10 degrees off in a plane: each turns by 5 degrees, and the box grows to hold the sheared one."""
    angle = np.radians(10.0)
    affine = np.eye(4)
    affine[:2, 1] = 2 * np.sin(angle), 2 * np.cos(angle)
    affine[2, 2] = 3.0
    affine[:3, 3] = 5, 6, 7
    sheared = Grid(affine, (20, 30, 10))
    square = sheared.orthonormal()
    np.testing.assert_allclose(square.spacing_mm, (1, 2, 3))
    np.testing.assert_allclose(square.centre, sheared.centre)
    half = np.radians(5.0)
    turned = square.affine[:3, :3] / np.array([1, 2, 3])
    np.testing.assert_allclose(turned.T @ turned, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(turned[:, 0] @ [1, 0, 0], np.cos(half))
    np.testing.assert_allclose(turned[:, 1] @ affine[:3, 1] / 2, np.cos(half))
    assert square.contains(sheared).all()
    assert Grid(TILTED, SHAPE).orthonormal().shape == SHAPE
    np.testing.assert_allclose(Grid(TILTED, SHAPE).orthonormal().affine, TILTED, atol=1e-9)
