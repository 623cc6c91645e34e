"""Cases of NIfTI-Zarr: ingested as those of NIfTI are, and written back from a store."""

import shutil
from pathlib import Path

import nibabel as nib
import niizarr
import numpy as np
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.errors import UsageError
from multiseg.evaluation.prediction_inputs import name_images
from multiseg.files import check_folder
from multiseg.store.reader import open_store
from multiseg.store.sources.dicom_folder import scan_at
from multiseg.store.sources.source_folder import look_into

CODES = ["--labels", "1=lesion", "--spacing", "10", "--json"]


@pytest.fixture
def folder(few_hospitals: Path, tmp_path: Path) -> Path:
    """A folder with the cases of one hospital, each with its lesions, as NIfTI-Zarr."""
    for path in sorted((few_hospitals / "alder").rglob("*.nii.gz")):
        into = tmp_path / "alder" / path.relative_to(few_hospitals / "alder")
        into.parent.mkdir(parents=True, exist_ok=True)
        niizarr.nii2zarr(nib.load(path), str(into.with_name(path.name.replace(".nii.gz", ".nii.zarr"))), nb_levels=1)
    return tmp_path / "alder"


@pytest.mark.slow
def test_they_are_ingested_as_nifti_files_are(
    folder: Path, few_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "new.zarr")
    pattern = ["--pattern", "{case}/{modality}.nii.zarr", "--label", "{case}/lesion.nii.zarr"]
    assert run(["ingest", str(folder), "--store", url, *pattern, *CODES]) in (0, 4)
    (report,) = checked(capsys.readouterr().out, "ingest")
    assert report["failed"] == []
    ours, theirs = open_store(url)["alder"], open_store(few_url)["alder"]
    for case in ours.cases:
        for one, other in zip(ours.whole(case), theirs.whole(theirs[case.name]), strict=True):
            np.testing.assert_array_equal(one[: len(other)], other[: len(one)])
    assert len(ours.cases) == 3


@pytest.mark.slow
def test_a_case_is_written_as_one_and_never_over_its_source(
    few_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = open_store(few_url)["alder"].cases[0]
    command = ["info", few_url, "--case", f"alder/{case.name}", "--write"]
    into = tmp_path / "x.nii.zarr"
    assert run([*command, str(into), "--json"]) == 0
    assert checked(capsys.readouterr().out, "info")["written"] == [str(into)]
    assert run([*command, str(tmp_path / "folder")]) == 0
    found = niizarr.zarr2nii(str(into), str(tmp_path / "back.nii"))
    for index, name in enumerate(case.modalities):
        expected = nib.load(tmp_path / "folder" / f"{name}.nii.gz")
        np.testing.assert_array_equal(
            np.asarray(found.dataobj).reshape(*expected.shape, -1)[..., index], expected.dataobj
        )
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    for path in (into / "labels").iterdir():
        if path.is_dir():
            label = niizarr.zarr2nii(str(path), str(tmp_path / "label.nii"))
            expected = nib.load(tmp_path / "folder" / f"label-{path.name}.nii.gz")
            np.testing.assert_array_equal(label.dataobj, expected.dataobj)
            assert label.get_data_dtype() == expected.get_data_dtype()
    assert run([*command, str(into)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert run([*command, str(into), "--overwrite"]) == 0


def test_a_folder_is_one_scan_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "p1" / "p1_FLAIR.nii.zarr" / "0" / "c").mkdir(parents=True)
    (tmp_path / "p1" / "p1_FLAIR.nii.zarr" / "zarr.json").touch()
    (tmp_path / "p1" / "T1.nii.gz").touch()
    folder = look_into(tmp_path)
    assert folder.volumes == folder.files == ("p1/T1.nii.gz", "p1/p1_FLAIR.nii.zarr")
    scan = tmp_path / "p1" / "p1_FLAIR.nii.zarr"
    assert name_images([str(scan)]) == {"FLAIR": scan}
    assert scan_at(scan) == scan
    shutil.rmtree(scan / "0")
    (tmp_path / "p1" / "T1.nii.gz").unlink()
    with pytest.raises(UsageError, match="is a folder of scans"):
        check_folder(tmp_path)
