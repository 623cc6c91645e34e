"""One case from files to arrays: normalisation, masks, the reference grid, and headers that lie."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.errors import LabelError, ModalityError, SourceError
from multiseg.labels import IGNORE, LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.prepare import PreparedCase, Recipe, prepare_case

SHAPE = (16, 18, 14)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
RECIPE = Recipe(spacing_mm=(2.0, 2.0, 2.0))
SCHEMAS = {"lesion": LabelSchema.parse("1=lesion,9=ignore", "lesion")}


def head(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Noise inside an ellipsoid, 0 outside."""
    at = (np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2) / (np.array(shape) * 0.4)
    inside = np.linalg.norm(at, axis=-1) < 1
    return (np.random.default_rng(seed).normal(300, 40, shape) * inside).astype(np.float32)


def lesion(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    codes = np.zeros(shape, dtype=np.uint8)
    codes[6:10, 7:11, 5:9] = 1
    return codes


def save(folder: Path, name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), folder / name)
    return folder / name


def prepared(recipe: Recipe = RECIPE, **files: object) -> PreparedCase:
    return prepare_case(CaseFiles(case="P1", **files), SCHEMAS, recipe)


def moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def test_z_score_inside_0_outside_and_raw_comes_back(tmp_path: Path) -> None:
    raw = {"T1": head(1), "FLAIR": head(2)}
    case = prepared(images={name: save(tmp_path, f"{name}.nii", raw[name]) for name in raw})
    assert case.modalities == ("FLAIR", "T1")
    assert case.images.dtype == np.float16
    inside = raw["T1"] != 0
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(inside))
    assert case.images.shape == (2, *inside[box].shape)
    np.testing.assert_allclose(case.grid.affine[:3, 3], [2 * part.start for part in box])
    for at, name in enumerate(case.modalities):
        image = case.images[at].astype(np.float64)
        scores = image[inside[box]]
        assert abs(scores.mean()) < 1e-3
        assert abs(scores.std() - 1) < 1e-3
        assert not image[~inside[box]].any()
        back = image * case.std[at] + case.mean[at]
        np.testing.assert_allclose(back[inside[box]], raw[name][box][inside[box]], rtol=1e-3)


def test_a_given_mask_is_the_brain(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[4:12, 5:13, 3:11] = 1
    case = prepared(images={"T1": save(tmp_path, "T1.nii", head() + 50)}, brain_mask=save(tmp_path, "m.nii", mask))
    assert case.grid.shape == (8, 8, 8)
    raw = (head() + 50)[4:12, 5:13, 3:11]
    assert case.mean[0] == pytest.approx(raw.mean(), rel=1e-5)
    assert case.std[0] == pytest.approx(raw.std(), rel=1e-5)


def test_an_empty_mask_leaves_no_brain(tmp_path: Path) -> None:
    mask = save(tmp_path, "m.nii", np.zeros(SHAPE, dtype=np.uint8))
    with pytest.raises(SourceError, match=r"m\.nii holds no voxel above 0\.5") as caught:
        prepared(images={"T1": save(tmp_path, "T1.nii", head())}, brain_mask=mask)
    assert caught.value.code == "EMPTY_BRAIN"


@pytest.mark.parametrize(("value", "code"), [(5.0, "CONSTANT_IMAGE"), (1e-9, "CONSTANT_IMAGE"), (0.0, "EMPTY_IMAGE")])
def test_images_without_contrast(value: float, code: str, tmp_path: Path) -> None:
    flat = np.where(head() != 0, value, 0).astype(np.float32)
    with pytest.raises(SourceError, match=r"is constant|is 0 everywhere") as caught:
        prepared(images={"T1": save(tmp_path, "T1.nii", flat)})
    assert caught.value.code == code
    # Resampled, the border of a mask is no longer constant.
    with pytest.raises(SourceError, match=r"is constant|is 0 everywhere"):
        prepared(Recipe((3.0, 3.0, 3.0)), images={"T1": save(tmp_path, "T1.nii", flat)})


def test_tiny_and_huge_units_are_no_fault(tmp_path: Path) -> None:
    for scale in (1e-12, 1e30):
        case = prepared(images={"ADC": save(tmp_path, "ADC.nii", (head() * scale).astype(np.float32))})
        assert np.isfinite(case.images).all()
        assert case.std[0] == pytest.approx(40 * scale, rel=0.1)


def test_an_outlier_does_not_overflow(tmp_path: Path) -> None:
    image = np.ones((60, 60, 60), dtype=np.float32)
    image[::2] = 1 + 1e-3
    image[30, 30, 30] = 3.4e38
    case = prepared(images={"T1": save(tmp_path, "T1.nii", image)})
    assert np.isfinite(case.images).all()
    assert case.images.max() > 400


def test_the_reference_is_asked_for_or_the_labels_or_the_first(tmp_path: Path) -> None:
    images = {
        "FLAIR": save(tmp_path, "FLAIR.nii", head(1, (16, 18, 7)), np.diag([2.0, 2.0, 4.0, 1.0])),
        "T1": save(tmp_path, "T1.nii", head(2)),
    }
    label = {"lesion": save(tmp_path, "lesion.nii", lesion())}
    assert prepared(images=images).native.shape == (16, 18, 7)
    assert prepared(images=images, labels=label).native.shape == SHAPE
    asked = Recipe((2.0, 2.0, 2.0), reference="FLAIR")
    assert prepared(asked, images=images, labels=label).native.shape == (16, 18, 7)


def test_a_label_goes_with_its_image_and_is_kept_whole(tmp_path: Path) -> None:
    codes = lesion()
    codes[0, 0, 0] = 9
    case = prepared(images={"T1": save(tmp_path, "T1.nii", head())}, labels={"lesion": save(tmp_path, "l.nii", codes)})
    assert np.count_nonzero(case.labels["lesion"] == 1) == 64
    assert np.count_nonzero(case.labels["lesion"] == IGNORE) == 1
    # The box grew to hold the label outside the brain.
    assert case.grid.affine[:3, 3].tolist() == [0, 0, 0]


def test_headers_that_disagree(tmp_path: Path) -> None:
    files = {
        "images": {"T1": save(tmp_path, "T1.nii", head())},
        "labels": {"lesion": save(tmp_path, "l.nii", lesion(), moved(4.0))},
    }
    with pytest.raises(SourceError, match=r"label:lesion \(l\.nii\) has the shape of T1 .* --headers-disagree") as e:
        prepared(**files)
    assert e.value.code == "HEADERS_DISAGREE"
    straight = prepared(images=files["images"], labels={"lesion": save(tmp_path, "ok.nii", lesion())})
    array = prepared(Recipe((2.0,) * 3, headers_disagree="array"), **files)
    world = prepared(Recipe((2.0,) * 3, headers_disagree="world"), **files)
    np.testing.assert_array_equal(array.labels["lesion"], straight.labels["lesion"])
    np.testing.assert_array_equal(world.labels["lesion"], np.roll(straight.labels["lesion"], 2, axis=0))
    for case in (array, world):
        assert "HEADERS_DISAGREE" in dict(case.doubts)
    assert not straight.doubts


def test_two_scans_of_one_shape_are_placed_by_their_headers_even_so(tmp_path: Path) -> None:
    """Trusting the array of a label must not move another sequence of the same shape."""
    files = {
        "images": {"FLAIR": save(tmp_path, "F.nii", head(1)), "T1": save(tmp_path, "T1.nii", head(2), moved(4.0))},
    }
    case = prepared(Recipe((2.0,) * 3, headers_disagree="array"), **files)
    assert "brought over through its header" in dict(case.doubts)["HEADERS_DISAGREE"]
    first = [np.nonzero(image.any(axis=(1, 2)))[0].min() for image in case.images]
    assert first[1] - first[0] == 2


def test_files_that_do_not_meet_in_space(tmp_path: Path) -> None:
    images = {"FLAIR": save(tmp_path, "F.nii", head(1)), "T1": save(tmp_path, "T1.nii", head(2), moved(500.0))}
    with pytest.raises(SourceError, match=r"T1 .* does not overlap FLAIR in space: it covers 0%") as caught:
        prepared(images=images)
    assert (caught.value.code, caught.value.file) == ("NO_OVERLAP", str(images["T1"]))


def test_micrometres_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"too many to be a head. Are its units micrometres") as caught:
        prepared(images={"T1": save(tmp_path, "T1.nii", head(), np.diag([2000.0, 2000.0, 2000.0, 1.0]))})
    assert caught.value.code == "BAD_SIZE"


def test_a_case_needs_a_sequence_and_known_codes(tmp_path: Path) -> None:
    with pytest.raises(ModalityError, match="case 'P1' has no file of a known sequence"):
        prepared(images={})
    with pytest.raises(LabelError, match=r"annotation 'lesion' \(.*l\.nii\): .*unknown codes: 3 \(64 voxels\)") as e:
        prepared(
            images={"T1": save(tmp_path, "T1.nii", head())},
            labels={"lesion": save(tmp_path, "l.nii", lesion() * 3)},
        )
    assert e.value.file.endswith("l.nii")


def test_the_order_of_the_files_changes_no_bit(tmp_path: Path) -> None:
    images = {name: save(tmp_path, f"{name}.nii", head(at)) for at, name in enumerate(["T2", "MTR", "FLAIR", "QSM"])}
    labels = {"lesion": save(tmp_path, "l.nii", lesion())}
    one = prepared(Recipe((3.0, 2.0, 2.5)), images=images, labels=labels)
    two = prepared(Recipe((3.0, 2.0, 2.5)), images=dict(reversed(images.items())), labels=labels)
    assert one.modalities == two.modalities == ("FLAIR", "T2", "MTR", "QSM")
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.labels["lesion"], two.labels["lesion"])
    np.testing.assert_array_equal(one.grid.affine, two.grid.affine)
    assert (one.mean.tolist(), one.sources) == (two.mean.tolist(), two.sources)


def test_what_a_person_should_look_at(tmp_path: Path) -> None:
    outside = np.zeros(SHAPE, dtype=np.uint8)
    outside[0, 0, :5] = 1
    case = prepared(
        images={"T1": save(tmp_path, "T1.nii", head() + 5)}, labels={"lesion": save(tmp_path, "l.nii", outside)}
    )
    assert set(dict(case.doubts)) == {"NO_BACKGROUND"}
    case = prepared(
        images={"T1": save(tmp_path, "T1.nii", head())}, labels={"lesion": save(tmp_path, "l.nii", outside)}
    )
    assert set(dict(case.doubts)) == {"LABEL_OUTSIDE_BRAIN"}
    one = np.zeros(SHAPE, dtype=np.uint8)
    one[8, 9, 7] = 1
    case = prepared(
        Recipe((6.0, 6.0, 6.0)),
        images={"T1": save(tmp_path, "T1.nii", head())}, labels={"lesion": save(tmp_path, "l.nii", one)},
    )  # fmt: skip
    assert "STRUCTURE_LOST" in dict(case.doubts)


def test_the_steps_are_written_down(tmp_path: Path) -> None:
    flipped = np.diag([-2.0, -2.0, 2.0, 1.0])
    case = prepared(Recipe((4.0, 4.0, 4.0)), images={"T1": save(tmp_path, "T1.nii", head(), flipped)})
    (source,) = case.sources
    assert (source["role"], source["file"], source["axes"]) == ("T1", "T1.nii", "LPS")
    assert source["steps"] == [
        "turned from LPS to RAS", "linear interpolation", "z-score inside the brain, 0 outside",
    ]  # fmt: skip
    assert Recipe.from_json(RECIPE.to_json()) == RECIPE
