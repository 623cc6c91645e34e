"""Synthetic heads around a brain: reproducible, of any contrast, and with the brain where the mask says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.loaders.synthetic_scans import GRID, SPACING_MM, BrainShape, draw_scan, standard_intensities


def ball() -> BrainShape:
    """A ball of 66 mm radius: z-scores that rise from left to right."""
    n = 26
    i, j, k = np.indices((n, n, n)) - (n - 1) / 2
    share = np.clip(11 - np.sqrt(i**2 + j**2 + k**2), 0, 1)
    return BrainShape("balls", "one", ((i / 6) * (share > 0))[None].astype(np.float16), share.astype(np.float16))


@pytest.fixture(scope="module")
def scans() -> list[tuple[np.ndarray, np.ndarray]]:
    drawn = [draw_scan(ball(), np.random.default_rng(seed)) for seed in range(12)]
    return [(scan, share > 0.5) for scan, share in drawn]


def test_a_scan_is_a_function_of_the_seed(scans: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scan, share = draw_scan(ball(), np.random.default_rng(3))
    assert np.array_equal(scan, scans[3][0])
    assert np.array_equal(share > 0.5, scans[3][1])
    assert (share.min(), share.max()) == (0, 1)
    assert np.count_nonzero((share > 0) & (share < 1)) > 500  # the surface of the ball
    assert not np.array_equal(scan, scans[4][0])


def test_the_brain_keeps_about_its_size(scans: list[tuple[np.ndarray, np.ndarray]]) -> None:
    ml = 4 / 3 * np.pi * 6.6**3
    for scan, brain in scans:
        assert scan.shape == brain.shape == GRID
        assert (scan.min(), scan.max()) == (0, 1)
        assert 0.3 < np.count_nonzero(brain) * (SPACING_MM / 10) ** 3 / ml < 2  # scaled, or partly outside the grid


def test_the_brain_may_be_the_brightest_or_the_darkest(scans: list[tuple[np.ndarray, np.ndarray]]) -> None:
    ratios = [scan[brain].mean() / scan[~brain & (scan > 0.1)].mean() for scan, brain in scans]
    assert min(ratios) < 0.8
    assert max(ratios) > 1.25


def test_what_was_not_scanned_has_no_brain(scans: list[tuple[np.ndarray, np.ndarray]]) -> None:
    cut = 0
    for scan, brain in scans:
        empty = [plane for axis in range(3) for plane in (0, -1) if not np.take(scan, plane, axis).any()]
        cut += bool(empty)
        for axis in range(3):
            dark = ~scan.any(axis=tuple(other for other in range(3) if other != axis))
            assert not np.moveaxis(brain, axis, 0)[dark].any()
    assert cut


@settings(max_examples=20)
@given(st.floats(0.01, 1000), st.floats(-500, 500))
def test_intensities_do_not_depend_on_the_scanners_unit(gain: float, shift: float) -> None:
    image = np.random.default_rng(0).uniform(0, 1, (6, 6, 6)).astype(np.float32)
    expected = standard_intensities(image)
    assert (expected.min(), expected.max()) == (0, 1)
    assert standard_intensities((image * gain + shift).astype(np.float32)) == pytest.approx(expected, abs=0.02)


def test_an_image_of_one_value_is_dark() -> None:
    assert not standard_intensities(np.full((3, 3, 3), 7, np.float32)).any()
