"""Intensities: raw, on a standard scale, without bias; and always a way back."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from multiseg.errors import SourceError
from multiseg.store.cases import CaseFiles
from multiseg.store.preparation.boxes import box_at
from multiseg.store.preparation.brain import BrainImage
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.landmarks import learn_landmarks
from multiseg.store.preparation.normalisation import remove_bias, standardise
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import PERCENTILES, Recipe

SHAPE = (24, 26, 22)
SPACING = (4.0, 4.0, 4.0)
SCALE = tuple(float(p) for p in np.linspace(0, 100, len(PERCENTILES)))


def brain(seed: int = 0) -> np.ndarray:
    """Positive noise in an ellipsoid, 0 outside."""
    at = (np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2) / (np.array(SHAPE) * 0.4)
    values = np.random.default_rng(seed).gamma(9.0, 30.0, SHAPE) + 1
    return (values * (np.linalg.norm(at, axis=-1) < 1)).astype(np.float32)


def case_of(folder: Path, image: np.ndarray, name: str = "P1") -> CaseFiles:
    nib.save(nib.Nifti1Image(image, np.diag([4.0, 4.0, 4.0, 1.0])), folder / f"{name}.nii")
    return CaseFiles(name, {"T1": folder / f"{name}.nii"})


def prepared(folder: Path, image: np.ndarray, name: str = "P1", **recipe: object) -> PreparedCase:
    return prepare_case(case_of(folder, image, name), {}, Recipe(SPACING, **recipe))


def inside(case: PreparedCase) -> np.ndarray:
    """What is stored of the brain, in float64."""
    return case.images[0][case.images[0] != 0].astype(np.float64)


def test_raw_values_stay_as_they_are(tmp_path: Path) -> None:
    raw = np.rint(brain())
    case = prepared(tmp_path, raw, normalise="none")
    assert (case.mean.tolist(), case.std.tolist()) == ([0.0], [1.0])
    np.testing.assert_array_equal(inside(case), raw[raw != 0])
    count = np.count_nonzero(raw)
    assert case.sources[0]["steps"][0] == f"raw values inside the brain ({count} voxels), 0 outside"


@pytest.mark.parametrize(
    ("scale", "offset", "said"),
    [
        (500.0, 0.0, r"up to \d\.\d+e\+05 \(the limit is 65504\)"),
        (0.1, 20_000.0, r"rounded by \d+\.\d% of their standard deviation"),
        (1e-9, 0.0, r"rounded by .*% of their standard deviation"),
    ],
)
def test_raw_values_that_float16_would_spoil_are_refused(
    scale: float, offset: float, said: str, tmp_path: Path
) -> None:
    image = np.where(brain() != 0, brain() * scale + offset, 0).astype(np.float32)
    with pytest.raises(SourceError, match=rf"T1 .* do not fit into float16: {said}. Use --normalise") as caught:
        prepared(tmp_path, image, normalise="none")
    assert caught.value.code == "NOT_FLOAT16"
    assert np.isfinite(prepared(tmp_path, image).images).all()


def test_the_standard_scale_by_hand() -> None:
    """10, 20, 40 go to 0, 50, 100: half-way stays half-way, and the last line goes on."""
    values = np.array([5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0])
    expected = [-25.0, 0.0, 25.0, 50.0, 75.0, 100.0, 125.0]
    np.testing.assert_allclose(standardise(values, [10.0, 20.0, 40.0], [0.0, 50.0, 100.0]), expected)


@given(
    st.lists(st.floats(0.1, 50), min_size=3, max_size=10),
    st.lists(st.floats(-500, 1500), min_size=1, max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_the_standard_scale_leads_back(steps: list[float], values: list[float], seed: int) -> None:
    own = np.cumsum(steps)
    scale = np.cumsum(np.random.default_rng(seed).uniform(1, 10, len(own)))
    there = standardise(np.array(values), own.tolist(), scale.tolist())
    back = standardise(there.astype(np.float64), scale.tolist(), own.tolist())
    reach = np.abs(values).max() + np.abs(there).max() * np.max(np.diff(own) / np.diff(scale))
    np.testing.assert_allclose(back, values, atol=1e-5 * max(1.0, reach))


def test_landmarks_are_the_mean_of_the_scaled_percentiles(tmp_path: Path) -> None:
    """Straight changes of brightness and contrast leave the scale as it is; of two shapes it is the mean."""
    one, two = brain(), np.where(brain() != 0, np.sqrt(brain()), 0).astype(np.float32)
    brighter = np.where(one != 0, 3 * one + 100, 0).astype(np.float32)
    recipe = Recipe(SPACING, normalise="histogram")
    first, second, both = case_of(tmp_path, one, "a"), case_of(tmp_path, brighter, "b"), case_of(tmp_path, two, "c")
    by_hand = []
    for image in (one, two):
        cut = np.percentile(image[image != 0], PERCENTILES)
        by_hand.append(100 * (cut - cut[0]) / (cut[-1] - cut[0]))
    np.testing.assert_allclose(learn_landmarks([first], recipe)["T1"], by_hand[0], rtol=1e-5)
    np.testing.assert_allclose(learn_landmarks([second], recipe)["T1"], by_hand[0], rtol=1e-5, atol=1e-3)
    learnt = learn_landmarks([both, first], recipe)
    np.testing.assert_allclose(learnt["T1"], np.mean(by_hand, axis=0), rtol=1e-5)
    assert learn_landmarks([both, second, first], recipe) == learn_landmarks([first, both, second], recipe)
    broken = CaseFiles("d", {"T1": tmp_path / "gone.nii"})
    assert learn_landmarks([broken, first], recipe) == learn_landmarks([first], recipe)
    assert learn_landmarks([broken], recipe) == {}


def test_landmarks_ask_for_a_mask_where_the_brain_is_told_by_it(tmp_path: Path) -> None:
    plain = case_of(tmp_path, brain(), "a")
    masked = replace(plain, brain_mask=tmp_path / "gone.nii")
    recipe = Recipe(SPACING, normalise="histogram")
    assert learn_landmarks([masked], recipe) == learn_landmarks([plain], recipe) != {}
    assert learn_landmarks([masked], replace(recipe, brain_mask="file")) == {}


def test_histograms_are_made_alike_and_lead_back_to_raw_values(tmp_path: Path) -> None:
    recipe = {"normalise": "histogram", "landmarks": {"T1": SCALE}}
    one = brain()
    other = np.where(one != 0, 50 + one**1.5, 0).astype(np.float32)
    a, b = prepared(tmp_path, one, "a", **recipe), prepared(tmp_path, other, "b", **recipe)
    plain = prepared(tmp_path, one, "a"), prepared(tmp_path, other, "b")
    cuts = [np.percentile(inside(case), PERCENTILES) for case in (a, b, *plain)]
    assert np.abs(cuts[0] - cuts[1]).max() < 0.1 * np.abs(cuts[2] - cuts[3]).max()
    for case, image in ((a, one), (b, other)):
        scores = case.images[0].astype(np.float64)
        assert abs(scores[scores != 0].mean()) < 1e-3
        told = case.sources[0]["histogram"]
        assert len(told["percentiles"]) == len(PERCENTILES)
        standard = inside(case) * case.std[0] + case.mean[0]
        raw = standardise(standard, told["landmarks"], told["percentiles"])
        np.testing.assert_allclose(raw, image[image != 0], rtol=1e-2)
        assert case.sources[0]["steps"][0].startswith("histogram: percentiles ")


def test_a_sequence_without_landmarks_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"T1 \(.*P1\.nii\) has no landmarks, .*--normalise zscore") as caught:
        prepared(tmp_path, brain(), normalise="histogram", landmarks={"FLAIR": SCALE})
    assert caught.value.code == "NO_LANDMARKS"


def test_many_equal_values_do_not_break_the_scale(tmp_path: Path) -> None:
    """Half of the brain has one value, so several percentiles are equal: the lines between the others remain."""
    image = brain()
    image[(image != 0) & (image < np.median(image[image != 0]))] = 7
    case = prepared(tmp_path, image, normalise="histogram", landmarks={"T1": SCALE})
    told = case.sources[0]["histogram"]
    assert 2 < len(told["percentiles"]) == len(told["landmarks"]) < len(PERCENTILES)
    assert (np.diff(told["percentiles"]) > 0).all()
    assert np.isfinite(case.images).all()


@pytest.mark.slow
def test_n4_takes_a_known_bias_out() -> None:
    """Two tissues under a smooth field of a factor 2.2: the field found is the field put in, but for its scale."""
    shape = (40, 44, 36)
    at = (np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2) / (np.array(shape) * 0.42)
    mask = np.linalg.norm(at, axis=-1) < 1
    noise = np.random.default_rng(0)
    tissue = np.where(ndimage.gaussian_filter(noise.normal(size=shape), 2) > 0, 200.0, 300.0)
    field = np.exp(0.4 * at[..., 0] - 0.2 * at[..., 1] ** 2)
    values = ((tissue + noise.normal(0, 4, shape)) * field * mask).astype(np.float32)
    journal = Journal()
    place = BrainImage(box_at((0, 0, 0), shape), values, mask)
    flat = remove_bias("T1", place, SPACING, journal)
    spread = [np.std(np.log(one.values[mask] / tissue[mask])) for one in (place, flat)]
    assert spread[0] > 0.15
    assert spread[1] < 0.05
    assert journal.steps["T1"][0].startswith("N4 (every 4th voxel, 50x50x50x50 steps): divided by a bias of 0.")
    again = remove_bias("T1", place, SPACING, Journal())
    np.testing.assert_array_equal(flat.values, again.values)


@pytest.mark.slow
def test_n4_by_recipe_is_a_step_of_its_own(tmp_path: Path) -> None:
    case = prepared(tmp_path, brain(), n4=True)
    assert [step.split(" ")[0] for step in case.sources[0]["steps"]] == ["N4", "z-score", "cropped"]
    assert not any("N4" in step for step in prepared(tmp_path, brain()).sources[0]["steps"])
