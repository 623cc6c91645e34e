"""The montage: a PNG of a useful size, the right slice the right way round, outlines only where asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Bool, Float
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from multiseg.colours import PREDICTION_COLOUR, TRUTH_COLOUR
from multiseg.errors import UsageError
from multiseg.evaluation.case_panel import CasePanel, Parcels
from multiseg.evaluation.montage import save_montage
from multiseg.evaluation.slice_panel import slice_of
from multiseg.types import Mask

SHAPE = (20, 24, 12)
Pixels = Float[np.ndarray, "row column channel"]


def volume(seed: int = 0) -> Float[np.ndarray, "i j k"]:
    """Noise inside a brain that fills k = 2..8, and zeros around it."""
    image = np.zeros(SHAPE, dtype=np.float16)
    image[2:18, 2:22, 2:9] = np.random.default_rng(seed).uniform(50, 100, (16, 20, 7))
    return image


def box(i: slice, j: slice, k: slice) -> Mask:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[i, j, k] = True
    return mask


def panel(*sequences: str, truth: Mask | None = None, predicted: Mask | None = None, name: str = "case-1") -> CasePanel:
    images = {sequence: volume(seed) for seed, sequence in enumerate(sequences or ("T1",))}
    return CasePanel(name, "stroke\nDice 0.50", images, truth, predicted)


def drawn(folder: Path, *panels: CasePanel, title: str = "") -> Pixels:
    save_montage(folder / "montage.png", panels, title, overwrite=True)
    return np.asarray(imread(folder / "montage.png"))[..., :3]


def where(pixels: Pixels, colour: str) -> Bool[np.ndarray, "row column"]:
    return np.asarray(np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.08)


def above_the_legend(pixels: Pixels) -> Pixels:
    return pixels[: -pixels.shape[0] // 4]


def test_a_slice_lets_its_volumes_leave() -> None:
    lesion = box(np.s_[4:10], np.s_[4:12], np.s_[5:6])
    parcels = {"tissues": Parcels(lesion.astype(np.uint8), ("GM", "WM"))}
    one = slice_of(replace(panel("T1", "T2", truth=lesion, predicted=lesion), parcels=parcels))
    planes = [*one.greys.values(), one.truth, one.predicted, one.parcels["tissues"].codes]
    assert one.view is not None
    assert one.view.k == 5
    assert one.parcels["tissues"].present == {"GM"}
    for plane in planes:
        assert plane is not None
        assert plane.shape == SHAPE[:2]
        assert plane.base is None, "a view keeps the whole volume"


def test_a_png_of_a_useful_size_that_grows_with_cases_and_sequences(tmp_path: Path) -> None:
    small = drawn(tmp_path, panel("T1"), title="One case")
    assert (tmp_path / "montage.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert small.shape[0] > 600
    assert small.shape[1] > 600
    large = drawn(tmp_path, *[panel("T1", "T2", "FLAIR", "DWI", "SWI", "T1ce")] * 6, title="Six cases")
    assert large.shape[0] > 2 * small.shape[0]
    assert large.shape[1] > 2 * small.shape[1]
    assert max(large.shape) < 3500
    assert [path.name for path in tmp_path.iterdir()] == ["montage.png"]


def test_a_long_name_of_a_column_has_two_lines(tmp_path: Path) -> None:
    def height(name: str) -> int:
        parcels = Parcels(box(np.s_[4:10], np.s_[4:12], np.s_[3:6]).astype(np.uint8), ("GM",))
        return drawn(tmp_path, replace(panel(), parcels={"truth": parcels, name: parcels})).shape[0]

    assert (
        height("a short name")
        < height("a name that would need far more than the width of its column")
        <= 1.1 * height("b")
    )


@pytest.mark.slow
def test_outlines_are_drawn_where_masks_are_given(tmp_path: Path) -> None:
    truth, predicted = box(np.s_[4:10], np.s_[4:12], np.s_[3:6]), box(np.s_[10:16], np.s_[12:20], np.s_[3:6])
    cells = above_the_legend(drawn(tmp_path, panel("T1", "T2", truth=truth, predicted=predicted)))
    assert where(cells, TRUTH_COLOUR).sum() > 500
    assert where(cells, PREDICTION_COLOUR).sum() > 250
    only_truth = drawn(tmp_path, panel("T1", "T2", truth=truth))
    assert where(above_the_legend(only_truth), TRUTH_COLOUR).sum() > 500
    assert not where(only_truth, PREDICTION_COLOUR).any()
    only_predicted = drawn(tmp_path, panel("T1", "T2", predicted=predicted))
    assert not where(only_predicted, TRUTH_COLOUR).any()
    assert where(above_the_legend(only_predicted), PREDICTION_COLOUR).sum() > 250


def test_both_outlines_show_where_they_agree(tmp_path: Path) -> None:
    mask = box(np.s_[4:12], np.s_[4:12], np.s_[3:6])
    cells = above_the_legend(drawn(tmp_path, panel(truth=mask, predicted=mask.copy())))
    assert where(cells, TRUTH_COLOUR).sum() > 250
    assert where(cells, PREDICTION_COLOUR).sum() > 250


@pytest.mark.slow
def test_no_mask_means_no_colour_and_an_empty_mask_only_a_legend(tmp_path: Path) -> None:
    plain = drawn(tmp_path, panel("T1", "T2"))
    assert not where(plain, TRUTH_COLOUR).any()
    assert not where(plain, PREDICTION_COLOUR).any()
    nothing = np.zeros(SHAPE, dtype=bool)
    empty = drawn(tmp_path, panel("T1", "T2", truth=nothing, predicted=nothing))
    assert where(empty, TRUTH_COLOUR).any()
    assert where(empty, PREDICTION_COLOUR).any()
    assert not where(above_the_legend(empty), TRUTH_COLOUR).any()
    assert not where(above_the_legend(empty), PREDICTION_COLOUR).any()


def test_front_is_up_and_the_right_of_the_patient_is_on_the_left(tmp_path: Path) -> None:
    truth = box(np.s_[13:17], np.s_[16:20], np.s_[4:6])  # right and front, since i j k is RAS+
    predicted = box(np.s_[3:7], np.s_[4:8], np.s_[4:6])  # left and back
    cells = above_the_legend(drawn(tmp_path, panel(truth=truth, predicted=predicted)))
    truth_row, truth_column = np.argwhere(where(cells, TRUTH_COLOUR)).mean(axis=0)
    predicted_row, predicted_column = np.argwhere(where(cells, PREDICTION_COLOUR)).mean(axis=0)
    assert truth_row < predicted_row - 100
    assert truth_column < predicted_column - 100


@pytest.mark.slow
def test_the_slice_with_the_largest_lesion_is_shown(tmp_path: Path) -> None:
    small, large = box(np.s_[4:6], np.s_[4:6], np.s_[3:5]), box(np.s_[8:14], np.s_[8:14], np.s_[7:8])
    alone = drawn(tmp_path, panel(truth=large))
    np.testing.assert_array_equal(drawn(tmp_path, panel(truth=large | small)), alone)
    # What is predicted counts as much as what is true.
    both = above_the_legend(drawn(tmp_path, panel(truth=small, predicted=large)))
    assert where(both, PREDICTION_COLOUR).any()
    assert not where(both, TRUTH_COLOUR).any()


@pytest.mark.slow
def test_the_middle_of_the_brain_is_shown_without_a_lesion(tmp_path: Path) -> None:
    def with_slices_swapped(one: int, other: int) -> Pixels:
        image = volume()
        image[..., [one, other]] = image[..., [other, one]]
        return drawn(tmp_path, CasePanel("case-1", "", {"T1": image}, None, None))

    usual = with_slices_swapped(5, 5)  # the brain fills 2..8
    np.testing.assert_array_equal(with_slices_swapped(4, 6), usual)
    assert np.abs(with_slices_swapped(5, 6) - usual).max() > 0.1


@pytest.mark.slow
def test_a_sequence_that_a_case_lacks_stays_dark(tmp_path: Path) -> None:
    pixels = drawn(tmp_path, panel("T1", "T2", name="full"), panel("T1", name="lacks T2"))
    height, width, _ = pixels.shape
    second_row_right = pixels[int(0.55 * height) : int(0.85 * height), int(0.68 * width) :]
    assert 0.3 < second_row_right.max() < 0.6  # the grey name
    assert np.median(second_row_right) < 0.2
    first_row_right = pixels[int(0.15 * height) : int(0.4 * height), int(0.68 * width) :]
    assert first_row_right.max() > 0.8


@pytest.mark.slow
def test_background_is_black_also_beside_negative_values(tmp_path: Path) -> None:
    image = volume()
    negative = np.where(image > 0, image - np.float16(200), image)
    pixels = drawn(tmp_path, CasePanel("case-1", "", {"T1": negative}, None, None))
    np.testing.assert_allclose(pixels, drawn(tmp_path, CasePanel("case-1", "", {"T1": image}, None, None)), atol=0.02)


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_flat_images_are_drawn_without_a_warning(tmp_path: Path, value: float) -> None:
    image = np.full(SHAPE, value, dtype=np.float32)
    assert drawn(tmp_path, CasePanel("$odd_name$", "", {"T1": image}, None, None)).shape[0] > 300


def test_a_mask_at_the_edge_of_the_grid_has_a_closed_outline(tmp_path: Path) -> None:
    whole = np.ones(SHAPE, dtype=bool)
    rows, columns = np.nonzero(where(above_the_legend(drawn(tmp_path, panel(truth=whole))), TRUTH_COLOUR))
    assert np.ptp(rows) > 300
    assert np.ptp(columns) > 300


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 cases"):
        save_montage(tmp_path / "montage.png", [])
    with pytest.raises(UsageError, match="1 cases"):
        save_montage(tmp_path / "montage.png", [CasePanel("a", "", {}, None, None)])
