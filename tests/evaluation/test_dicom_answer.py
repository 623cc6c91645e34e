"""`predict --dicom-seg`: the segmentation as a DICOM SEG on the patient's own series."""

from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_slices import TO_LPS, write_slices
from json_documents import checked

from multiseg.cli.app import run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import BEST, ModelInfo, save_model

AFFINE = np.eye(4)
AFFINE[:3, :3] = nib.eulerangles.euler2mat(0.1, -0.2, 0.15) @ np.diag([-5.0, -5.0, 6.0])
AFFINE[:3, 3] = [30.5, -20.25, 7.0]
SHAPE = (16, 14, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder "joint" of a model that nobody trained, whose answer has both structures."""
    folder = tmp_path_factory.mktemp("runs") / "joint"
    torch.manual_seed(0)
    axis, numbers, space = (
        ModalityAxis(("FLAIR",)),
        {"widths": [2, 3], "dropout": 0.0},
        LabelSpace.of(["lesion", "tissue:CSF"]),
    )
    info = ModelInfo("multi_unet", numbers, axis, space, (5.0, 5.0, 5.0), (16, 16, 16), {"FLAIR": ("ms",)}, {})
    save_model(folder / BEST, build("multi_unet", 1, 3, **numbers), info)
    return str(folder)


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """A folder with the series dicom/flair, in a shuffled order, and flair.nii.gz, the same in other axes."""
    return made(tmp_path, 0)


def made(folder: Path, seed: int, **fields: object) -> Path:
    voxels = np.zeros(SHAPE, np.uint16)
    voxels[2:-2, 2:-2, 1:-1] = np.random.default_rng(seed).integers(50, 900, (12, 10, 7))
    write_slices(folder / "dicom" / "flair", voxels, AFFINE, np.random.default_rng(1).permutation(9), **fields)
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.int16), AFFINE))
    nib.save(image, folder / "flair.nii.gz")
    return folder


def in_series_axes(path: Path) -> np.ndarray:
    """A NIfTI file's voxels in the order of those of the series."""
    image = nib.load(path)
    turn = nib.orientations.io_orientation(np.linalg.inv(AFFINE) @ image.affine)
    return nib.orientations.apply_orientation(np.asarray(image.dataobj), turn)


def in_seg(path: Path) -> np.ndarray:
    seg = highdicom.seg.segread(path)
    grid = highdicom.VolumeGeometry(
        TO_LPS @ AFFINE, SHAPE, coordinate_system="PATIENT", frame_of_reference_uid=seg.FrameOfReferenceUID
    )
    return seg.get_volume(combine_segments=True, allow_missing_positions=True).match_geometry(grid, tol=1e-3).array


@pytest.mark.slow
def test_one_patient_of_nifti_or_of_dicom(model: str, patient: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dicom = str(patient / "dicom" / "flair")
    for name, flags in {
        "nifti": [f"FLAIR={patient / 'flair.nii.gz'}", "--dicom-seg", dicom],
        "dicom": [f"FLAIR={dicom}", "--dicom-seg", "source"],
        "both": [f"FLAIR={dicom}", "--dicom-seg", dicom],
    }.items():
        out = patient / f"{name}.nii.gz"
        assert run(["predict", model, *flags, "-o", str(out), "--device", "cpu", "--json"]) == 0
        printed = checked(capsys.readouterr().out, "predict")
        assert printed["dicom_seg"] == str(patient / f"{name}.dcm")
        assert "OTHER_INTENSITIES" not in {doubt["code"] for doubt in printed["doubts"]}
        labels = in_series_axes(out)
        assert set(np.unique(labels)) >= {0, 1}
        np.testing.assert_array_equal(in_seg(patient / f"{name}.dcm"), labels)
    assert highdicom.seg.segread(patient / "nifti.dcm").ManufacturerModelName == "joint"


@pytest.mark.slow
def test_a_series_of_something_else_is_refused_before_anything_is_written(
    model: str, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = made(tmp_path / "other", 5) / "dicom" / "flair"
    command = [
        "predict",
        model,
        f"FLAIR={patient / 'flair.nii.gz'}",
        "-o",
        str(patient / "a.nii.gz"),
        "--device",
        "cpu",
    ]
    for series, code, message in (
        (str(other), 3, "may be of another patient"),
        (str(patient / "dicom"), 3, "has no DICOM images"),
        ("source", 2, "is not read from DICOM"),
    ):
        assert run([*command, "--dicom-seg", series]) == code
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (patient / "a.nii.gz").exists()
    write_slices(patient / "dicom" / "flair", np.ones(SHAPE, np.uint16), AFFINE, start=9)
    assert run([*command, "--dicom-seg", str(patient / "dicom" / "flair")]) == 3
    assert "has 2 series or volumes" in " ".join(capsys.readouterr().err.split())


def test_a_source_is_never_overwritten(model: str, patient: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = patient / "dicom" / "flair"
    command = ["predict", model, f"FLAIR={series}", "-o", str(series / "003.nii.gz"), "--device", "cpu", "--overwrite"]
    assert run([*command, "--dicom-seg", "source"]) == 2
    assert "is an input, which is never overwritten" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_many_patients(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    for number, name in enumerate(("A", "B")):
        made(tmp_path / name, number, PatientID=name, SeriesDescription="ax flair")
        study.mkdir(exist_ok=True)
        (tmp_path / name / "dicom").rename(study / name)
    (study / "notes.dcm").write_bytes(b"no DICOM")
    command = ["predict", model, str(study), "-o", str(tmp_path / "out"), "--modality", "ax flair=FLAIR"]
    command += ["--device", "cpu", "--dicom-seg"]
    assert run([*command, "source", "--json"]) == 0
    printed = checked(capsys.readouterr().out, "predict")  # the finding is in the document, not in a table before it
    assert [one["code"] for one in printed["findings"]] == ["NOT_DICOM"]
    cases = printed["cases"]
    for name, case in cases.items():
        assert f"{name}.dcm" in case["outputs"]
        np.testing.assert_array_equal(
            in_seg(tmp_path / "out" / f"{name}.dcm"), in_series_axes(tmp_path / "out" / f"{name}.nii.gz")
        )
    assert sorted(name[0] for name in cases) == ["A", "B"]
    assert run([*command, "source", "--json"]) == 0
    assert sorted(checked(capsys.readouterr().out, "predict")["unchanged"]) == sorted(cases)
    for flags, message in (
        ([str(study)], "is the series of one patient"),
        (["source", "--bids"], "a BIDS derivative has no DICOM files"),
    ):
        assert run([*command, *flags]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
