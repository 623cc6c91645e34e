"""Scans of phantoms' heads: reproducible, of any contrast, with a brain of a person's size inside a head."""

import numpy as np
import pytest
from scipy import ndimage

from multiseg.loaders.synthetic_scans import GRID, SPACING_MM
from multiseg.training.phantom_scans import draw_phantom_scan


@pytest.fixture(scope="module")
def scans() -> list[tuple[np.ndarray, np.ndarray]]:
    drawn = [draw_phantom_scan(np.random.default_rng(seed)) for seed in range(12)]
    return [(scan, share > 0.5) for scan, share in drawn]


def test_a_scan_is_a_function_of_the_seed(scans: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scan, share = draw_phantom_scan(np.random.default_rng(3))
    assert np.array_equal(scan, scans[3][0])
    assert np.array_equal(share > 0.5, scans[3][1])
    assert (share.min(), share.max()) == (0, 1)
    assert np.count_nonzero((share > 0) & (share < 1)) > 500  # the surface of the brain
    assert not np.array_equal(scan, scans[4][0])


def test_the_brain_is_one_part_of_a_persons_size(scans: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for scan, brain in scans:
        assert scan.shape == brain.shape == GRID
        assert (scan.min(), scan.max()) == (0, 1)
        assert 400 < np.count_nonzero(brain) * (SPACING_MM / 10) ** 3 < 2200  # ml; some sides are cut off
        assert ndimage.label(brain, np.ones((3, 3, 3)))[1] == 1


def test_the_brain_may_be_brighter_or_darker_than_the_rest_of_the_head(
    scans: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    ratios = [scan[brain].mean() / scan[~brain & (scan > 0.2)].mean() for scan, brain in scans]
    assert min(ratios) < 1
    assert max(ratios) > 1.5


def test_there_is_a_neck_below_and_air_above_the_brain(scans: list[tuple[np.ndarray, np.ndarray]]) -> None:
    below, above = zip(*(_around(scan, brain) for scan, brain in scans), strict=True)
    assert np.median(below) > 2 * np.median(above)


def _around(scan: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    """The mean intensity below and above the box of the brain."""
    heights = np.flatnonzero(brain.any(axis=(0, 1)))
    low, high = scan[:, :, : heights[0]], scan[:, :, heights[-1] + 2 :]
    return (float(low.mean()) if low.size else 0.0, float(high.mean()) if high.size else 0.0)
