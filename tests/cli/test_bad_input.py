"""Bad input from the shell: a clear finding, a non-zero exit code, and nothing half written."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.store.formats.nifti import write_nifti

PATTERN = ("--pattern", "{case}/{modality}.nii.gz", "--label", "{case}/lesion.nii.gz")


def change(path: Path, edit: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    image = nib.load(path)
    write_nifti(path, *edit(np.asarray(image.dataobj), image.affine))


def truncate(folder: Path) -> None:
    path = folder / "A001" / "T1.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(folder: Path) -> None:
    path = folder / "A001" / "T1.nii.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    stored = bytearray(gzip.compress(bytes(data), mtime=0))
    stored[-5] ^= 1  # the checksum at the stream's end
    path.write_bytes(bytes(stored))


def move_the_mask_away(folder: Path) -> None:
    def edit(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        affine = affine.copy()
        affine[:3, 3] += 5000
        return voxels[:-3], affine

    change(folder / "A001" / "lesion.nii.gz", edit)


def lose_the_masks_header(folder: Path) -> None:
    change(folder / "A001" / "lesion.nii.gz", lambda voxels, affine: (voxels, np.diag([2.0, 2.0, 2.0, 1.0])))


def use_an_unknown_code(folder: Path) -> None:
    change(folder / "A001" / "lesion.nii.gz", lambda voxels, affine: (voxels * 7, affine))


def leave_no_known_sequence(folder: Path) -> None:
    for name in ("T1", "T2", "FLAIR", "PD"):
        (folder / "A001" / f"{name}.nii.gz").rename(folder / "A001" / f"scan{name}x.nii.gz")


def lose_the_label(folder: Path) -> None:
    (folder / "A001" / "lesion.nii.gz").unlink()


def name_one_sequence_twice(folder: Path) -> None:
    shutil.copy(folder / "A001" / "T1.nii.gz", folder / "A001" / "T1w.nii.gz")


def put_nan_in(folder: Path) -> None:
    def edit(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        voxels = voxels.copy()
        voxels[3, 4, 5] = np.nan
        return voxels, affine

    change(folder / "A001" / "FLAIR.nii.gz", edit)


def make_it_constant(folder: Path) -> None:
    change(folder / "A001" / "PD.nii.gz", lambda voxels, affine: (np.where(voxels != 0, 1, 0).astype("u1"), affine))


FAULTS = [
    (truncate, "DAMAGED_FILE", "T1.nii.gz is a truncated or damaged gzip"),
    (flip_a_bit, "DAMAGED_FILE", "T1.nii.gz is a truncated or damaged gzip"),
    (move_the_mask_away, "NO_OVERLAP", "0% of what it marks is within"),
    (lose_the_masks_header, "HEADERS_DISAGREE", "its header gives another position"),
    (use_an_unknown_code, "LABEL_CODES", "unknown codes: 7"),
    (leave_no_known_sequence, "NO_MODALITY", "no file of a known sequence"),
    (lose_the_label, "MISSING_FILE", "has no label 'lesion'"),
    (name_one_sequence_twice, "DUPLICATE_CASE", "two files are T1 of case 'A001'"),
    (put_nan_in, "NOT_FINITE", "1 voxels that are NaN"),
    (make_it_constant, "CONSTANT_IMAGE", "is constant"),
]


@pytest.fixture
def folder(hospitals: Path, tmp_path: Path) -> Path:
    """Two good cases of the hospital alder, to be spoilt."""
    for case in ("A001", "A002"):
        shutil.copytree(hospitals / "alder" / case, tmp_path / "alder" / case)
    return tmp_path / "alder"


@pytest.mark.parametrize(("spoil", "code", "message"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_is_named_and_leaves_nothing(
    spoil: Callable[[Path], None], code: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "A002")
    spoil(folder)
    store = folder.parent / "brain.zarr"
    assert run(["ingest", str(folder), *PATTERN, "--store", str(store), "--spacing", "5", "--json"]) == 3
    (report,) = checked(capsys.readouterr().out, "ingest")
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert [finding["code"] for finding in errors] == [code]
    assert message in errors[0]["message"]
    assert errors[0]["case"] == "A001"
    assert report["failed"] == ["A001"]
    assert not store.exists()


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [truncate, use_an_unknown_code, put_nan_in])
def test_a_bad_case_does_not_keep_the_good_one_out(
    spoil: Callable[[Path], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    store = folder.parent / "brain.zarr"
    assert run(["ingest", str(folder), *PATTERN, "--store", str(store), "--spacing", "5"]) == 4
    assert "A001" in capsys.readouterr().out
    assert run(["info", str(store), "--json", "--cases"]) == 0
    assert [case["case"] for case in checked(capsys.readouterr().out, "info")["cases"]] == ["A002"]


@pytest.mark.slow
def test_a_manifest_that_names_a_missing_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = folder / "cases.csv"
    manifest.write_text("database,case,T1,label\nms,A001,A001/T1.nii.gz,A001/lesion.nii.gz\nms,x,x/T1.nii.gz,\n")
    store = folder.parent / "brain.zarr"
    assert run(["ingest", str(manifest), "--store", str(store), "--spacing", "5", "--json"]) == 4
    (report,) = checked(capsys.readouterr().out, "ingest")
    assert report["written"] == ["A001"]
    (error,) = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert error["code"] == "MISSING_FILE"
    assert "x/T1.nii.gz does not exist" in error["message"]


def test_two_cases_of_one_name_in_two_sites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for site in ("north", "south"):
        shutil.copytree(folder / "A001", folder / "sites" / site / "A001")
    pattern = ("--pattern", "{site}/{case}/{modality}.nii.gz")
    store = folder.parent / "brain.zarr"
    assert run(["ingest", str(folder / "sites"), *pattern, "--store", str(store), "--json"]) == 3
    (report,) = checked(capsys.readouterr().out, "ingest")
    assert {finding["code"] for finding in report["findings"] if finding["severity"] == "error"} == {"DUPLICATE_CASE"}
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{folder}/none", *PATTERN], 3, "none does not exist"),
        (["{folder}/empty", *PATTERN], 3, "none of the 0 files"),
        (["{folder}", "--pattern", "{patient}.nii.gz"], 2, "has a field {patient}"),
        (["{folder}"], 3, 'Give their meaning: --labels "tissue:1=NAME'),
        (["{folder}", *PATTERN, "--spacing", "0"], 2, "voxel sizes must be above 0"),
        (["{folder}", *PATTERN, "--labels", "lesion"], 3, "'lesion' is neither codes with meanings"),
        (["{folder}/empty"], 3, "is empty. Is it the right folder"),
        (["{folder}", "--as", "dicomm"], 2, "unknown layout 'dicomm'"),
        (["{folder}", "--label", "x.nii"], 2, "the pattern of images is missing"),
        (["{folder}", *PATTERN, "--workers", "many"], 2, "--workers 'many' is not a whole number"),
        (["{folder}", *PATTERN, "--memory", "lots"], 2, "--memory 'lots' is not a size. Write it like 8GB"),
        (["{folder}", *PATTERN, "--scheduler", "gpu"], 2, "'gpu' is neither threads, processes nor"),
        (["{folder}", *PATTERN, "--split", "splits.csv"], 3, "splits.csv"),
        (["{folder}", *PATTERN, "--split", "train=0.5"], 2, "add up to 1"),
        (["{folder}", *PATTERN, "--spacing", "500"], 2, "at most 20 mm"),
        (["{folder}", *PATTERN, "--reference", "FLAIRX"], 2, "no case of 'alder' has the reference sequence 'FLAIRX'"),
        (["{folder}", *PATTERN, "--codec", "gzip"], 2, "codec 'gzip' is not one of none, lz4, lz4hc, zstd"),
        (
            ["{folder}", *PATTERN, "--headers-disagree", "x"],
            2,
            "unknown headers_disagree 'x': choose one of refuse, world, array",
        ),
    ],
)
def test_arguments_that_cannot_be_meant(
    arguments: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    store = folder.parent / "brain.zarr"
    filled = [argument.replace("{folder}", str(folder)) for argument in arguments]
    assert run(["ingest", *filled, "--store", str(store)]) == code
    assert message in capsys.readouterr().err
    assert not store.exists()


def test_an_image_is_no_brain_mask(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = folder.parent / "brain.zarr"
    options = ["--brain-mask", "{case}/T2.nii.gz", "--spacing", "5", "--json"]
    assert run(["ingest", str(folder), *PATTERN, "--store", str(store), *options]) == 3
    (report,) = checked(capsys.readouterr().out, "ingest")
    assert {f["code"] for f in report["findings"] if f["severity"] == "error"} == {"NOT_A_MASK"}


@pytest.mark.slow
def test_a_brain_mask_that_is_no_brain_is_doubted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = folder.parent / "brain.zarr"
    for case in ("A001", "A002"):
        shutil.copy(folder / case / "lesion.nii.gz", folder / case / "mask.nii.gz")
    options = ["--brain-mask", "{case}/mask.nii.gz", "--spacing", "5", "--json"]
    assert run(["ingest", str(folder), *PATTERN, "--store", str(store), *options]) == 0
    (report,) = checked(capsys.readouterr().out, "ingest")
    assert [f["case"] for f in report["findings"] if f["code"] == "BRAIN_SIZE"] == ["A001", "A002"]
