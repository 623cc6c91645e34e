"""One case from files to arrays: normalisation, masks, the reference grid, and headers that lie."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from multiseg.errors import LabelError, ModalityError, SourceError, UsageError
from multiseg.labels import IGNORE, LabelSchema, Structure
from multiseg.store.cases import CaseFiles, Majority, sha256_of
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.labelling import encode_labels
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import Recipe

SHAPE = (16, 18, 14)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
RECIPE = Recipe(spacing_mm=(2.0, 2.0, 2.0))
MASKED = Recipe(spacing_mm=(2.0, 2.0, 2.0), brain_mask="file")
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


def doubts(case: PreparedCase) -> dict[str, str]:
    """What was said, by its code; not that these heads of a few millilitres are none."""
    plausible = ("VOXEL_SIZE", "BRAINS_DIFFER", "BRAIN_SIZE")
    return {doubt.code: doubt.message for doubt in case.doubts if doubt.code not in plausible}


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
    files = {"images": {"T1": save(tmp_path, "T1.nii", head() + 50)}, "brain_mask": save(tmp_path, "m.nii", mask)}
    case = prepared(MASKED, **files)
    assert case.grid.shape == (8, 8, 8)
    raw = (head() + 50)[4:12, 5:13, 3:11]
    assert case.mean[0] == pytest.approx(raw.mean(), rel=1e-5)
    assert case.std[0] == pytest.approx(raw.std(), rel=1e-5)


def test_volumes_of_brain_and_structures_are_those_of_the_stored_voxels(tmp_path: Path) -> None:
    """A voxel has 0.008 ml; of two sequences' brains the union counts, and every structure is named."""
    second = head(2)
    second[: SHAPE[0] // 2] = 0
    codes = lesion()
    codes[6, 7, 5] = 9
    case = prepared(
        images={"T1": save(tmp_path, "T1.nii", head()), "T2": save(tmp_path, "T2.nii", second)},
        labels={"lesion": save(tmp_path, "l.nii", codes)},
    )
    assert case.brain_ml == pytest.approx(np.count_nonzero(head()) * 0.008)
    assert case.structures_ml == {"lesion": {"lesion": pytest.approx(63 * 0.008)}}


def test_an_empty_mask_leaves_no_brain(tmp_path: Path) -> None:
    mask = save(tmp_path, "m.nii", np.zeros(SHAPE, dtype=np.uint8))
    with pytest.raises(SourceError, match=r"m\.nii has no voxel above 0\.5") as caught:
        prepared(MASKED, images={"T1": save(tmp_path, "T1.nii", head())}, brain_mask=mask)
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
    image += np.random.default_rng(0).uniform(0, 1e-3, image.shape).astype(np.float32)
    image[30, 30, 30] = 3.4e38
    with pytest.raises(SourceError, match=r"98% of the brain is between 1\.\d+ and 1\.\d+") as caught:  # and no warning
        prepared(images={"T1": save(tmp_path, "T1.nii", image)})
    assert caught.value.code == "EXTREME_VALUES"


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
    with pytest.raises(SourceError, match=r"label:lesion \(l\.nii\) has the shape of T1, .* --headers-disagree") as e:
        prepared(**files)
    assert e.value.code == "HEADERS_DISAGREE"
    straight = prepared(images=files["images"], labels={"lesion": save(tmp_path, "ok.nii", lesion())})
    array = prepared(Recipe((2.0,) * 3, headers_disagree="array"), **files)
    world = prepared(Recipe((2.0,) * 3, headers_disagree="world"), **files)
    np.testing.assert_array_equal(array.labels["lesion"], straight.labels["lesion"])
    np.testing.assert_array_equal(world.labels["lesion"], np.roll(straight.labels["lesion"], 2, axis=0))
    for case in (array, world):
        assert "HEADERS_DISAGREE" in doubts(case)
    assert not doubts(straight)


def twins(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two contrasts of one head with anatomy in it: smooth structures that both show, each in its own grey."""
    anatomy = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(30, 32, 28)), 1.5)
    inside = head(0, anatomy.shape) != 0
    one, two = 300 + 800 * anatomy, 500 - 900 * np.abs(anatomy)
    return (one * inside).astype(np.float32), (two * inside).astype(np.float32)


def test_array_aligned_files_with_other_headers_are_found_by_their_likeness(tmp_path: Path) -> None:
    """The same voxels under a header 6 mm off: refused with both numbers, unless a person says which is right."""
    one, two = twins()
    images = {"FLAIR": save(tmp_path, "F.nii", one), "T1": save(tmp_path, "T1.nii", two, moved(6.0))}
    numbers = r"\(similarity to FLAIR: 1\.[1-9]\d* as the same voxels, 1\.0\d* by the headers\)"
    with pytest.raises(SourceError, match=rf"T1 \(T1\.nii\) has the shape .*{numbers}.* --headers-disagree array") as e:
        prepared(images=images)
    assert e.value.code == "HEADERS_DISAGREE"
    array = prepared(Recipe((2.0,) * 3, headers_disagree="array"), images=images)
    straight = prepared(images={"FLAIR": images["FLAIR"], "T1": save(tmp_path, "t1.nii", two)})
    np.testing.assert_array_equal(array.images, straight.images)
    assert array.sources[1]["steps"][0] == "header not believed: taken as the same voxels as FLAIR"
    world = prepared(Recipe((2.0,) * 3, headers_disagree="world"), images=images)
    first = [np.nonzero(image.any(axis=(1, 2)))[0].min() for image in world.images]
    assert first[1] - first[0] == 3


def test_two_scans_of_one_shape_from_two_places_are_placed_by_their_headers(tmp_path: Path) -> None:
    one, two = twins()
    images = {"FLAIR": save(tmp_path, "F.nii", one), "T1": save(tmp_path, "T1.nii", np.roll(two, -3, 0), moved(6.0))}
    case = prepared(images=images)
    assert "its header was used (similarity" in doubts(case)["HEADERS_DISAGREE"]
    # A label goes where its sequence goes, whichever that is.
    codes = np.roll(lesion(one.shape), -3, 0)
    files = {"images": images, "labels": {"lesion": save(tmp_path, "l.nii", codes, moved(6.0))}}
    reference = Recipe((2.0,) * 3, reference="FLAIR")
    placed = prepared(reference, **files).labels["lesion"]
    np.testing.assert_array_equal(np.argwhere(placed)[0] + first_voxel(prepared(reference, **files)), (6, 7, 5))
    array = prepared(Recipe((2.0,) * 3, reference="FLAIR", headers_disagree="array"), **files)
    np.testing.assert_array_equal(np.argwhere(array.labels["lesion"])[0] + first_voxel(array), (3, 7, 5))


def first_voxel(case: PreparedCase) -> np.ndarray:
    """Where the case's first voxel lies, in voxels of `AFFINE`."""
    return np.rint(case.grid.affine[:3, 3] / 2).astype(int)


def test_files_that_do_not_meet_in_space(tmp_path: Path) -> None:
    other = save(tmp_path, "T1.nii", head(2, (14, 16, 12)), moved(500.0))
    images = {"FLAIR": save(tmp_path, "F.nii", head(1)), "T1": other}
    with pytest.raises(SourceError, match=r"T1 .* does not overlap FLAIR in space: it covers 0%") as caught:
        prepared(images=images)
    assert (caught.value.code, caught.value.file) == ("NO_OVERLAP", str(images["T1"]))


def sheared(degrees: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 2 * np.sin(np.radians(degrees))
    affine[1, 1] = 2 * np.cos(np.radians(degrees))
    return affine


def test_axes_off_right_angles_are_straightened_and_said(tmp_path: Path) -> None:
    """A ball in space, written on a grid sheared by 6 degrees, is a ball again on a grid at right angles."""
    shape, affine = (40, 40, 40), sheared(6.0)
    xyz = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T
    centre = affine[:3, :3] @ np.full(3, 19.5)
    far = np.linalg.norm(xyz - centre, axis=-1)
    ball = np.where(far < 24, 300 - 5 * far, 0).astype(np.float32)
    case = prepared(images={"T1": save(tmp_path, "T1.nii", ball, affine)})
    assert "T1 (T1.nii): the axes in its header are 6 degrees off right angles" in doubts(case)["NOT_ORTHOGONAL"]
    assert case.sources[0]["steps"][0] == "straightened by 6 degrees"
    columns = case.grid.affine[:3, :3]
    np.testing.assert_allclose(columns.T @ columns, 4 * np.eye(3), atol=1e-9)
    xyz = np.moveaxis(np.indices(case.grid.shape), 0, -1) @ columns.T + case.grid.affine[:3, 3]
    far = np.linalg.norm(xyz - centre, axis=-1)
    raw = case.images[0].astype(np.float64) * case.std[0] + case.mean[0]
    between = (far > 4) & (far < 22)  # away from the tip and the edge, which voxels of 2 mm round off
    np.testing.assert_allclose(raw[between], (300 - 5 * far)[between], atol=1.5)
    assert not case.images[0][far > 26].any()
    np.testing.assert_allclose(case.native.affine, affine, atol=1e-6)


def test_axes_that_are_nearly_parallel_are_refused_and_rounding_is_not_a_doubt(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"T1 \(T1\.nii\): the axes in its header are 20 degrees off") as caught:
        prepared(images={"T1": save(tmp_path, "T1.nii", head(), sheared(20.0))})
    assert caught.value.code == "BAD_AFFINE"
    case = prepared(images={"T1": save(tmp_path, "T1.nii", head(), sheared(0.05))})
    assert not doubts(case)
    assert "resampled" not in str(case.sources)


@pytest.mark.parametrize(
    ("mm", "code", "said"),
    [
        (2000.0, "BAD_AFFINE", r"Are its units micrometres"),
        (140.0, "BAD_SIZE", r"too many for a head. Are its units"),
    ],
)
def test_micrometres_are_refused_before_memory_is_asked_for(tmp_path: Path, mm: float, code: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        prepared(images={"T1": save(tmp_path, "T1.nii", head(), np.diag([mm, mm, mm, 1.0]))})
    assert caught.value.code == code


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
    air = np.random.default_rng(3).uniform(1, 9, SHAPE).astype(np.float32)
    case = prepared(
        images={"T1": save(tmp_path, "T1.nii", head() + air)}, labels={"lesion": save(tmp_path, "l.nii", outside)}
    )
    assert set(doubts(case)) == {"NO_BACKGROUND"}
    partly = lesion()
    partly[0, 0, :5] = 1
    case = prepared(images={"T1": save(tmp_path, "T1.nii", head())}, labels={"lesion": save(tmp_path, "l.nii", partly)})
    assert set(doubts(case)) == {"LABEL_OUTSIDE_BRAIN"}
    assert doubts(case)["LABEL_OUTSIDE_BRAIN"].startswith("7% of annotation 'lesion' is outside the brain.")
    one = np.zeros(SHAPE, dtype=np.uint8)
    one[8, 9, 7] = 1
    case = prepared(
        Recipe((6.0, 6.0, 6.0)),
        images={"T1": save(tmp_path, "T1.nii", head())}, labels={"lesion": save(tmp_path, "l.nii", one)},
    )  # fmt: skip
    assert "STRUCTURE_LOST" in doubts(case)


FAR = (slice(0, 4), slice(0, 4), slice(0, 4))
"""512 mm^3 in a corner, three voxels and more from the head."""


@pytest.mark.parametrize("size", [1, 64])
def test_a_label_wholly_outside_the_brain_is_an_error(size: int, tmp_path: Path) -> None:
    """However small it is, and beside annotations that are in their place."""
    far = np.zeros(SHAPE, dtype=np.uint8)
    far[FAR] = np.arange(64).reshape(4, 4, 4) < size
    schemas = SCHEMAS | {"other": SCHEMAS["lesion"]}
    labels = {"lesion": save(tmp_path, "l.nii", lesion()), "other": save(tmp_path, "far.nii", far)}
    files = CaseFiles("P1", {"T1": save(tmp_path, "T1.nii", head())}, labels)
    with pytest.raises(SourceError, match=r"all of annotation 'other' \(far\.nii\) is outside the brain") as caught:
        prepare_case(files, schemas, RECIPE)
    assert (caught.value.code, caught.value.file) == ("LABEL_OUTSIDE_BRAIN", str(labels["other"]))


def test_one_structure_of_a_label_outside_the_brain(tmp_path: Path) -> None:
    """A lesion of half a millilitre is an error; fewer voxels, tissue (a skull), and voxels to ignore are not."""
    image = {"T1": save(tmp_path, "T1.nii", head())}

    def label(kind: str, code: int, size: int) -> PreparedCase:
        codes = lesion() * 4
        codes[FAR] = np.where(np.arange(64).reshape(4, 4, 4) < size, code, 0)
        schema = LabelSchema((Structure("core", "lesion", (4,)), Structure("rim", kind, (1,))), ignore_codes=(9,))
        return prepare_case(
            CaseFiles("P1", image, {"lesion": save(tmp_path, "l.nii", codes)}), {"lesion": schema}, RECIPE
        )

    with pytest.raises(SourceError, match=r"rim \(0\.512 ml\) of annotation 'lesion' \(l\.nii\) is outside the brain"):
        label("lesion", 1, 64)
    assert set(doubts(label("lesion", 1, 8))) == {"LABEL_OUTSIDE_BRAIN"}
    assert set(doubts(label("tissue", 1, 64))) == {"LABEL_OUTSIDE_BRAIN"}
    assert set(doubts(label("lesion", 9, 64))) == set()


def test_a_label_a_voxel_off_the_brain_is_rounding(tmp_path: Path) -> None:
    brain = np.zeros(SHAPE, dtype=np.float32)
    brain[4:12, 4:14, 3:11] = np.random.default_rng(0).normal(300, 40, (8, 10, 8))
    image = {"T1": save(tmp_path, "T1.nii", brain)}
    for at, is_refused in ((12, False), (13, True)):
        codes = np.zeros(SHAPE, dtype=np.uint8)
        codes[at, 8, 6] = 1
        files = {"images": image, "labels": {"lesion": save(tmp_path, "l.nii", codes)}}
        if is_refused:
            with pytest.raises(SourceError, match="is outside the brain"):
                prepared(**files)
        else:
            assert doubts(prepared(**files))["LABEL_OUTSIDE_BRAIN"].startswith("100% of annotation 'lesion'")


def cropped(array: np.ndarray, affine: np.ndarray = AFFINE) -> tuple[np.ndarray, np.ndarray]:
    """The box around what is not 0, as 3D Slicer saves a segment, and its affine."""
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(array))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return array[box], moved


def test_a_label_cut_to_its_own_box_is_read_and_placed(tmp_path: Path) -> None:
    """The box has less than 1% of the image's; the voxels are the same as those of the whole label."""
    small = np.zeros(SHAPE, dtype=np.uint8)
    small[7:9, 8:10, 6] = 1
    images = {
        "FLAIR": save(tmp_path, "F.nii", head(1, (16, 18, 7)), np.diag([2.0, 2.0, 4.0, 1.0])),
        "T1": save(tmp_path, "T1.nii", head()),
    }
    cut = save(tmp_path, "cut.nii", *cropped(small))
    flipped = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = 2 * (SHAPE[0] - 1)
    turned = save(tmp_path, "turned.nii", *cropped(small[::-1], flipped))
    whole = prepared(images=images, labels={"lesion": save(tmp_path, "l.nii", small)})
    for label in (cut, turned):
        case = prepared(images=images, labels={"lesion": label})
        # It lies on T1's voxels, so T1 is the reference, as with the whole label.
        assert case.sources[1]["steps"][0].startswith("z-score")
        np.testing.assert_array_equal(case.labels["lesion"], whole.labels["lesion"])
        np.testing.assert_array_equal(case.grid.affine, whole.grid.affine)
        assert set(doubts(case)) == set(doubts(whole)) == set()
    elsewhere = save(tmp_path, "elsewhere.nii", nib.load(cut).get_fdata().astype(np.uint8), moved(200.0))
    with pytest.raises(SourceError, match=r"label:lesion .* 0% of what it marks is within the box of FLAIR") as caught:
        prepared(images=images, labels={"lesion": elsewhere})
    assert caught.value.code == "NO_OVERLAP"


def test_a_label_or_mask_that_leaves_the_image_is_told(tmp_path: Path) -> None:
    half = np.zeros((16, 6, 4), dtype=np.uint8)
    half[4:12] = 1
    affine = AFFINE.copy()
    affine[:3, 3] = (16.0, 16.0, 12.0)  # 8 of its 16 rows lie beyond the image, 4 of the 8 marked ones
    case = prepared(
        images={"T1": save(tmp_path, "T1.nii", head())}, labels={"lesion": save(tmp_path, "l.nii", half, affine)}
    )
    assert "label:lesion (l.nii): only 50% of what it marks is within the box of T1" in doubts(case)["SMALL_OVERLAP"]
    mask, place = cropped((head() != 0).astype(np.uint8))
    case = prepared(
        MASKED, images={"T1": save(tmp_path, "T1.nii", head())}, brain_mask=save(tmp_path, "m.nii", mask, place)
    )
    assert "SMALL_OVERLAP" not in doubts(case)


def test_the_steps_are_written_down(tmp_path: Path) -> None:
    flipped = np.diag([-2.0, -2.0, 2.0, 1.0])
    case = prepared(Recipe((4.0, 4.0, 4.0)), images={"T1": save(tmp_path, "T1.nii", head(), flipped)})
    (source,) = case.sources
    assert (source["role"], source["file"], source["axes"]) == ("T1", "T1.nii", "LPS")
    turned, resampled, scored, cropped = source["steps"]
    assert turned == "turned from LPS to RAS"
    assert resampled == "resampled from 2 x 2 x 2 mm to 4 x 4 x 4 mm (linear)"
    count = np.count_nonzero(case.images)
    numbers = f"{count} voxels: mean {case.mean[0]:.6g}, std {case.std[0]:.6g}"
    assert scored == f"z-score inside the brain ({numbers}), 0 outside"
    assert cropped == f"cropped from 8x9x7 to {'x'.join(map(str, case.grid.shape))} voxels at (1, 1, 1)"


def test_a_recipe_survives_json_and_an_old_one_is_read() -> None:
    full = Recipe(
        (1.0, 2.0, 3.0),
        "T1",
        "command bet {image} {mask}",
        "array",
        "histogram",
        "rigid",
        True,
        {"T1": (0.0, 50.0, 100.0)},
    )
    told = json.loads(json.dumps(full.to_json()))
    assert Recipe.from_json(told) == replace(full, headers_disagree="refuse")
    old = {"spacing_mm": [1.0, 1.0, 1.0], "reference": "", "brain_mask": "nonzero", "normalise": "zscore"}
    assert Recipe.from_json(old) == Recipe()
    # Without the steps that came later a recipe is written as ever, so that old stores take new cases.
    assert Recipe().to_json() == old


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"brain_mask": "bet"}, "unknown brain_mask 'bet': choose one of file, nonzero, otsu or"),
        ({"brain_mask": "command bet {image}"}, r"lacks \{mask\}"),
        ({"normalise": "minmax"}, "unknown normalise 'minmax': choose one of zscore, histogram, none"),
        ({"register": "affine"}, "unknown register 'affine': choose one of \"\", rigid"),
    ],
)
def test_a_recipe_that_cannot_be_meant(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe(**wrong)


def test_a_sequence_that_is_a_copy_of_another_is_seen_in_any_file(tmp_path: Path) -> None:
    """The digest knows a scan whatever its type, compression and orientation, and tells one voxel."""
    whole = np.rint(head(1) / 2).astype(np.uint8)
    one = save(tmp_path, "a.nii", whole)
    flipped = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = 2 * (SHAPE[0] - 1)
    two = save(tmp_path, "b.nii.gz", whole[::-1].astype(np.float64), flipped)
    case = prepared(images={"FLAIR": one, "T1": two, "T2": save(tmp_path, "c.nii", head(2))})
    assert case.content[0] == case.content[1] != case.content[2]
    assert "FLAIR and T1 have the same voxels (a.nii and b.nii.gz)" in doubts(case)["COPIED_SEQUENCE"]
    changed = whole.copy()
    changed[8, 9, 7] += 1
    case = prepared(images={"FLAIR": one, "T1": save(tmp_path, "d.nii", changed)})
    assert case.content[0] != case.content[1]
    assert not doubts(case)


def test_labels_that_are_empty_or_too_large(tmp_path: Path) -> None:
    image = {"T1": save(tmp_path, "T1.nii", head())}
    none = prepared(images=image, labels={"lesion": save(tmp_path, "n.nii", np.zeros(SHAPE, dtype=np.uint8))})
    assert set(doubts(none)) == {"EMPTY_LABEL"}
    assert "note" in {doubt.severity for doubt in none.doubts}
    assert none.labels["lesion"].shape == none.grid.shape
    all_of_it = save(tmp_path, "all.nii", (head() != 0).astype(np.uint8))
    large = prepared(images=image, labels={"lesion": all_of_it})
    assert "the lesions of annotation 'lesion' fill 100% of the brain" in doubts(large)["LARGE_LABEL"]
    tissue = {"lesion": LabelSchema.parse("1=brain", "tissue")}
    assert not doubts(prepare_case(CaseFiles("P1", image, {"lesion": all_of_it}), tissue, RECIPE))


def test_several_raters_vote(tmp_path: Path) -> None:
    """One row of voxels: three raters' codes, and the majority with ties to the lower code."""
    votes = np.array([[0, 0, 0], [1, 1, 0], [1, 9, 9], [1, 0, 9], [0, 1, 0], [1, 1, 1], [0, 9, 9]])
    expected = [0, 1, IGNORE, 0, 0, 1, IGNORE]
    raters = []
    for at in range(3):
        codes = np.zeros(SHAPE, dtype=np.float32)
        codes[5:12, 9, 7] = votes[:, at]
        raters.append(save(tmp_path, f"r{at}.nii", codes))
    files = {"images": {"T1": save(tmp_path, "T1.nii", head())}, "labels": {"lesion": Majority(tuple(raters))}}
    case = prepared(**files)
    i, j, k = np.array([5, 9, 7]) - first_voxel(case)
    assert case.labels["lesion"][i : i + 7, j, k].tolist() == expected
    source = case.sources[1]
    assert (source["role"], source["file"]) == ("label:lesion", "majority of r0.nii, r1.nii, r2.nii")
    assert source["sha256"] == sha256_of(files["labels"]["lesion"])
    assert source["steps"][0] == "majority of 3 raters, ties to the lower code"


@pytest.mark.parametrize(("shape", "mm"), [(SHAPE, 2.0), ((16, 18, 12), 0.0)])
def test_raters_on_different_grids_cannot_vote(shape: tuple[int, int, int], mm: float, tmp_path: Path) -> None:
    raters = (save(tmp_path, "a.nii", lesion()), save(tmp_path, "b.nii", lesion(shape), moved(mm)))
    files = {"images": {"T1": save(tmp_path, "T1.nii", head())}, "labels": {"lesion": Majority(raters)}}
    with pytest.raises(SourceError, match=r"raters a\.nii .* and b\.nii .* drew on different grids") as caught:
        prepared(**files)
    assert caught.value.code == "RATERS_DISAGREE"


def test_codes_are_the_same_however_the_label_is_cropped() -> None:
    """The quick way around zeros says what the schema says, also where 0 has a meaning or none."""
    values = np.zeros((9, 8, 7), dtype=np.float32)
    values[3:5, 4, 2:4] = 2
    for text in ("1=a,2=b", "0=ignore,2=b", "0=a,2=b"):
        schema = LabelSchema.parse(text, "lesion")
        np.testing.assert_array_equal(encode_labels(values, schema), schema.encode(values))
    with pytest.raises(LabelError, match=r"unknown codes: 0 \(500 voxels\)"):
        encode_labels(values, LabelSchema((Structure("b", "lesion", (2,)),), background_codes=(5,)))


def test_a_real_case_at_its_own_voxel_size(data: Path) -> None:
    """Nothing is resampled, so raw intensities come back but for the rounding of float16."""
    files = {name: data / "ms/patient07" / f"{name}.nii.gz" for name in ("FLAIR", "T1")}
    case = prepare_case(CaseFiles("P1", files), {}, Recipe())
    for at, name in enumerate(case.modalities):
        raw = to_ras(read_volume(files[name]))
        corner = np.rint(np.linalg.inv(raw.affine) @ case.grid.affine[:, 3])[:3].astype(int)
        part = raw.voxels[tuple(slice(c, c + n) for c, n in zip(corner, case.grid.shape, strict=True))]
        back = case.images[at].astype(np.float64) * case.std[at] + case.mean[at]
        inside = part != 0
        assert np.count_nonzero(inside) == np.count_nonzero(raw.voxels)
        assert np.abs(back - part)[inside].max() < 2e-3 * np.abs(part).max()
        assert not any("resampled" in step for step in case.sources[at]["steps"])
