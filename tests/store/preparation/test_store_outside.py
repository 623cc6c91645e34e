"""What lies around a brain: 0, or another constant, which has to give the same answer."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.errors import SourceError
from multiseg.store.cases import CaseFiles
from multiseg.store.preparation.outside import border_value
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import Recipe

SHAPE = (40, 48, 36)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def brain(cut: int = 0) -> np.ndarray:
    """300 and noise inside an ellipsoid of 1.1 l; `cut` voxels of it stick out of the box below."""
    at = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2 + np.array([0, 0, cut])
    inside = np.linalg.norm(at / np.array([15, 19, 14]), axis=-1) < 1
    return np.where(inside, np.random.default_rng(0).normal(300, 60, SHAPE), 0).astype(np.float32)


def save(folder: Path, name: str, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, AFFINE), folder / name)
    return folder / name


def prepared(image: Path, mm: float = 4.0, **recipe: object) -> PreparedCase:
    return prepare_case(CaseFiles("P1", {"T1": image}), {}, Recipe((mm,) * 3, **recipe))


def codes(case: PreparedCase) -> set[str]:
    return {doubt.code for doubt in case.doubts}


@pytest.mark.parametrize("outside", [-0.00125, -1.0, 1e-6, 32768.0, -1024.0, 250.0])
@pytest.mark.parametrize("rule", ["nonzero", "otsu"])
@pytest.mark.parametrize("mm", [4.0, 5.0])
def test_any_constant_around_the_brain_is_the_outside(outside: float, rule: str, mm: float, tmp_path: Path) -> None:
    """Images, brain and grid are those of the scan with 0 around it; raw values come back as the file has them."""
    image = brain()
    plain = prepared(save(tmp_path, "plain.nii", image), mm, brain_mask=rule)
    shifted = np.where(image == 0, outside, image + np.float32(outside)).astype(np.float32)
    case = prepared(save(tmp_path, "T1.nii", shifted), mm, brain_mask=rule)
    assert case.brain_ml == plain.brain_ml == pytest.approx(1070, rel=0.12)
    np.testing.assert_array_equal(case.grid.affine, plain.grid.affine)
    np.testing.assert_allclose(case.images, plain.images, atol=2e-3)
    assert case.mean[0] == pytest.approx(plain.mean[0] + outside, abs=1e-2)
    assert case.std[0] == pytest.approx(plain.std[0], rel=1e-4)
    assert case.outside == pytest.approx(outside)
    assert case.intensity_above_outside["T1"] == pytest.approx(plain.intensity["T1"], abs=1e-2)
    assert codes(case) == codes(plain) | {"BACKGROUND"}
    (note,) = [doubt for doubt in case.doubts if doubt.code == "BACKGROUND"]
    assert (note.severity, f"its border is {outside:.6g}, not 0" in note.message) == ("note", True)


@pytest.mark.parametrize("outside", [-0.00125, -50.0])
def test_raw_values_and_landmarks_are_those_of_the_file(outside: float, tmp_path: Path) -> None:
    image = brain()
    file = save(tmp_path, "T1.nii", image + np.float32(outside))
    raw = prepared(file, normalise="none")
    inside = image != 0
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(inside))
    np.testing.assert_allclose(raw.images[0][inside[box]], (image + outside)[inside], rtol=1e-3, atol=0.1)
    assert not raw.images[0][~inside[box]].any()
    landmarks = {"T1": tuple(float(10 * at) for at in range(11))}
    details = prepared(file, normalise="histogram", landmarks=landmarks).sources[0]["histogram"]
    assert details["percentiles"][5] == pytest.approx(np.median(image[inside]) + outside, abs=1e-3)


def test_whole_numbers_with_slope_and_intercept_are_the_float_scan(tmp_path: Path) -> None:
    """nibabel saves a float as int16 with an intercept, so that 0 comes back as some -0.001."""
    image = np.where(brain() == 0, 0, brain() / 100 - 3)  # z-scores: 0 lies in the middle of the brain's values
    plain = prepared(save(tmp_path, "plain.nii", image.astype(np.float32)))
    stored = nib.Nifti1Image(image.astype(np.float32), AFFINE)
    stored.set_data_dtype(np.int16)
    nib.save(stored, tmp_path / "T1.nii")
    edge = float(nib.load(tmp_path / "T1.nii").get_fdata()[0, 0, 0])
    assert 0 < abs(edge) < 1e-3
    case = prepared(tmp_path / "T1.nii")
    assert case.brain_ml == pytest.approx(plain.brain_ml, rel=1e-3)
    np.testing.assert_allclose(case.images, plain.images, atol=1e-2)


def test_a_cut_brain_noise_and_a_flat_scan(tmp_path: Path) -> None:
    """A brain through a face leaves the constant; air that is not constant, and a scan that is, have none."""
    cut = brain(cut=18) - 7
    assert (cut[:, :, 0] != -7).mean() > 0.2
    assert border_value(cut) == -7
    touching = brain()
    touching[0, 0], touching[:, 0, 0] = 5, 6
    assert border_value(touching) == 0  # some of its edges are taken, most of its faces are not
    assert border_value(np.random.default_rng(0).normal(8, 3, SHAPE)) is None
    with pytest.raises(SourceError, match=r"is constant \(5\)"):
        prepared(save(tmp_path, "T1.nii", np.full(SHAPE, 5, dtype=np.float32)))
