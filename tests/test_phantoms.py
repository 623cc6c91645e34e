"""The synthetic hospitals: reproducible, laid out as declared, and with lesions one can see."""

import re
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from multiseg.errors import UsageError
from multiseg.modalities import canonical_modality
from multiseg.phantoms.hospitals import write_hospital, write_hospitals
from multiseg.phantoms.known_hospitals import HOSPITALS, MORE_HOSPITALS, Hospital

NUM_CASES = 3
COARSENESS = 2.0
EVERY = (*HOSPITALS, *MORE_HOSPITALS)
BY_NAME = {hospital.name: hospital for hospital in EVERY}
# The sequence that shows each pathology best, and the code that it shows.
MAIN = {
    "alder": ("FLAIR", 1), "birch": ("T1c", 4), "cedar": ("DWI", 1), "dogwood": ("FLAIR", 1),
    "fir": ("FLAIR", 1),
}  # fmt: skip
DARK = {"elm": ("T1", 1), "fir": ("T1", 1), "gorse": ("T1", 1), "ivy": ("T1", 1)}

hospitals = pytest.mark.parametrize("hospital", EVERY, ids=lambda hospital: hospital.name)
ILL = [hospital for hospital in EVERY if hospital.pathology != "healthy"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospitals(folder, num_cases=NUM_CASES, coarseness=COARSENESS, names=list(BY_NAME))
    return folder


def cases(hospital: Hospital) -> list[str]:
    return [f"{hospital.name[0].upper()}{number:03d}" for number in range(1, NUM_CASES + 1)]


def test_a_raw_scan_has_the_same_brain_in_a_whole_head(tmp_path: Path) -> None:
    for skull in (False, True):
        write_hospitals(tmp_path / str(skull), num_cases=1, coarseness=3.0, names=["birch"], skull=skull)
    raw, stripped = (nib.load(tmp_path / skull / "birch" / "B001" / "t1.nii.gz") for skull in ("True", "False"))
    masks = [nib.load(tmp_path / skull / "birch" / "B001" / "brainmask.nii.gz") for skull in ("True", "False")]
    ml = [float(np.count_nonzero(mask.get_fdata())) * 0.216 for mask in masks]
    assert ml[0] == pytest.approx(ml[1], rel=0.02)
    centres = [nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() == 1)).mean(axis=0) for mask in masks]
    assert centres[0] == pytest.approx(centres[1], abs=1.0)
    signal, brain = raw.get_fdata(), masks[0].get_fdata() == 1
    assert np.count_nonzero(signal[~brain] > 0.3 * signal[brain].mean()) > np.count_nonzero(brain)  # face and neck
    assert (stripped.get_fdata()[masks[1].get_fdata() == 0] == stripped.get_fdata().flat[0]).all()
    assert signal.min() >= 0  # not z-scored
    manifest = tomllib.loads((tmp_path / "True" / "manifest.toml").read_text())
    assert manifest["database"][0]["brain_mask"] == "{case}/brainmask.nii.gz"


def scan_path(root: Path, hospital: Hospital, case: str, modality: str) -> Path:
    (scan,) = [scan for scan in hospital.scans if scan.modality == modality]
    return root / hospital.name / hospital.pattern.format(case=case, modality=scan.spelling)


def label_path(root: Path, hospital: Hospital, case: str) -> Path:
    return root / hospital.name / hospital.annotations[0].pattern.format(case=case)


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@hospitals
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(hospital: Hospital, tmp_path: Path) -> None:
    first = contents(write_hospital(hospital, tmp_path / "a", 5, num_cases=2, coarseness=3.0))
    again = contents(write_hospital(hospital, tmp_path / "b", 5, num_cases=2, coarseness=3.0))
    other = contents(write_hospital(hospital, tmp_path / "c", 6, num_cases=2, coarseness=3.0))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


@hospitals
def test_a_case_does_not_depend_on_how_many_there_are(hospital: Hospital, tmp_path: Path) -> None:
    one = contents(write_hospital(hospital, tmp_path / "one", num_cases=1, coarseness=3.0))
    two = contents(write_hospital(hospital, tmp_path / "two", num_cases=2, coarseness=3.0))
    assert all(two[name] == data for name, data in one.items() if name.endswith(".nii.gz"))
    assert len(set(two.values())) == len(two)


@hospitals
def test_every_scan_lies_on_the_declared_grid(hospital: Hospital, root: Path) -> None:
    for scan in hospital.scans:
        image = nib.load(scan_path(root, hospital, cases(hospital)[0], scan.modality))
        assert "".join(nib.aff2axcodes(image.affine)) == hospital.orientation
        np.testing.assert_allclose(image.header.get_zooms(), np.array(scan.spacing_mm) * COARSENESS, rtol=1e-5)
        middle = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
        np.testing.assert_allclose(middle, 0, atol=1e-3)  # the head's centre is the origin in millimetres
        assert image.get_data_dtype() == np.dtype(hospital.dtype)
        is_oblique = np.count_nonzero(np.abs(image.affine[:3, :3]) > 1e-6) > 3
        assert is_oblique == (scan.tilt_deg != (0.0, 0.0))


@hospitals
def test_labels_hold_only_declared_codes_inside_the_brain(hospital: Hospital, root: Path) -> None:
    for case in cases(hospital):
        image = voxels(scan_path(root, hospital, case, hospital.scans[0].modality))
        for annotation in hospital.annotations:
            label = voxels(root / hospital.name / annotation.pattern.format(case=case))
            declared = {int(code) for code in re.findall(r"(\d+)=", annotation.codes)}
            assert label.shape == image.shape
            assert set(np.unique(label)) == declared | {0}
        if hospital.background == "zero" and hospital.pathology != "healthy":
            lesion = voxels(label_path(root, hospital, case)) > 0
            assert np.all(image[lesion] != 0)
        if hospital.brain_mask:
            mask = voxels(root / hospital.name / hospital.brain_mask.format(case=case))
            assert set(np.unique(mask)) == {0, 1}
            assert np.all(mask[label > 0] == 1)
            background = image[mask == 0]
            assert np.ptp(background) == 0
            assert background[0] < 0


@pytest.mark.parametrize(("name", "shown", "sign"), [
    *((name, shown, 1) for name, shown in MAIN.items()), *((name, shown, -1) for name, shown in DARK.items()),
])  # fmt: skip
def test_lesions_stand_out_on_the_main_sequence(name: str, shown: tuple[str, int], sign: int, root: Path) -> None:
    hospital, (modality, code) = BY_NAME[name], shown
    for case in cases(hospital):
        image = voxels(scan_path(root, hospital, case, modality)).astype(float)
        label = voxels(label_path(root, hospital, case))
        around = ndimage.binary_dilation(label > 0, iterations=2) & (label == 0)
        median = np.median(image[around])
        spread = 1.4826 * np.median(np.abs(image[around] - median))
        # Round what is dark lie fluid and cortex, too, so that the surroundings spread widely.
        least = spread if sign > 0 else 0.15 * abs(median)
        assert sign * (np.median(image[label == code]) - median) > least


@pytest.mark.parametrize("hospital", ILL, ids=lambda hospital: hospital.name)
def test_lesion_volumes_are_plausible(hospital: Hospital, root: Path) -> None:
    for case in cases(hospital):
        image = nib.load(label_path(root, hospital, case))
        voxel_ml = np.prod(image.header.get_zooms()) / 1000
        assert 1 < np.count_nonzero(image.dataobj) * voxel_ml < 80


def test_stroke_scans_on_two_grids_show_one_lesion(root: Path) -> None:
    cedar = BY_NAME["cedar"]
    label = nib.load(label_path(root, cedar, "C001"))
    flair = nib.load(scan_path(root, cedar, "C001", "FLAIR"))
    assert not np.allclose(label.affine, flair.affine)
    to_label = np.linalg.inv(label.affine) @ flair.affine
    lesion = np.asarray(label.dataobj, float)
    on_flair = ndimage.affine_transform(lesion, to_label, output_shape=flair.shape, order=1)
    image = np.asarray(flair.dataobj, float)
    around = ndimage.binary_dilation(on_flair > 0.5, iterations=3) & (on_flair < 0.1)
    assert np.median(image[on_flair > 0.9]) > 1.1 * np.median(image[around])


def test_tissues_are_known_under_the_glioma_and_the_healthy_have_no_lesion(root: Path) -> None:
    hazel, ivy = BY_NAME["hazel"], BY_NAME["ivy"]
    assert [annotation.name for annotation in hazel.annotations] == ["tissue"]
    for case in cases(ivy):
        lesion, tissue = (voxels(root / "ivy" / one.pattern.format(case=case)) for one in ivy.annotations)
        assert np.mean(tissue[lesion > 0] > 0) > 0.99
        assert np.mean(tissue[lesion > 0] == 3) > 0.5  # white matter, where gliomas grow


def test_every_third_stroke_has_no_flair(root: Path) -> None:
    cedar = BY_NAME["cedar"]
    assert [scan_path(root, cedar, case, "FLAIR").exists() for case in cases(cedar)] == [True, True, False]


@hospitals
def test_spellings_are_those_that_ingest_knows(hospital: Hospital) -> None:
    assert tuple(canonical_modality(scan.spelling) for scan in hospital.scans) == hospital.modalities


def test_the_manifest_names_files_that_exist(root: Path) -> None:
    databases = tomllib.loads((root / "manifest.toml").read_text(encoding="utf-8"))["database"]
    assert [database["name"] for database in databases] == list(BY_NAME)
    for database in databases:
        hospital = BY_NAME[database["name"]]
        folder = root / database["root"]
        assert database["pattern"] == hospital.pattern
        assert database["labels"].keys() == database["codes"].keys()
        patterns = [*database["labels"].values(), database.get("brain_mask")]
        for case in cases(hospital):
            assert all((folder / pattern.format(case=case)).is_file() for pattern in patterns if pattern)
        if "participants" in database:
            rows = (folder / database["participants"]).read_text(encoding="utf-8").splitlines()
            assert rows[0] == "case,age,sex,scanner"
            assert [row.split(",")[0] for row in rows[1:]] == cases(hospital)


def test_where_nobody_names_any_there_are_the_four_that_there_always_were(tmp_path: Path) -> None:
    write_hospitals(tmp_path, num_cases=1, coarseness=4.0)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["alder", "birch", "cedar", "dogwood"]


def test_chronic_strokes_share_an_appearance_with_other_lesions_where_only_fir_shows_it(root: Path) -> None:
    """Bright on FLAIR and T2 as lesions elsewhere, dark on T1: what a model can carry over from others."""
    for case in cases(BY_NAME["fir"]):
        label = voxels(label_path(root, BY_NAME["fir"], case)) > 0
        around = ndimage.binary_dilation(label, iterations=2) & ~label
        for modality, sign in {"FLAIR": 1, "T2": 1, "T1": -1}.items():
            image = voxels(scan_path(root, BY_NAME["fir"], case, modality)).astype(float)
            assert sign * np.median(image[label]) > sign * np.median(image[around])


def test_some_hospitals_can_be_chosen_by_name(tmp_path: Path) -> None:
    manifest = write_hospitals(tmp_path, num_cases=1, coarseness=4.0, names=["dogwood"])
    assert manifest == tmp_path / "manifest.toml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dogwood", "manifest.toml"]


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="oak"):
        write_hospitals(tmp_path, names=["alder", "oak"])
    with pytest.raises(UsageError, match="num_cases=0"):
        write_hospital(HOSPITALS[0], tmp_path, num_cases=0)
    with pytest.raises(UsageError, match=r"coarseness=0\.0"):
        write_hospital(HOSPITALS[0], tmp_path, coarseness=0.0)
    assert list(tmp_path.iterdir()) == []
