"""MSSEG 2016: two releases, seven raters, and two stages of every image."""

from collections.abc import Callable
from pathlib import Path

import pytest
from looking import look

ALL = ("PD", "FLAIR", "T1", "T1c", "T2")


def write_patient(head, folder: Path, *, raters: int = 3, raw: bool = True) -> None:
    for name in ("FLAIR", "T1", "GADO", "T2", "DP"):
        head.save(folder / "Preprocessed_Data" / f"{name}_preprocessed.nii.gz")
        if raw:
            head.save(folder / "Raw_Data" / f"{name}.nii.gz")
    head.save(folder / "Masks" / "Consensus.nii.gz", head.codes(1))
    for rater in range(1, raters + 1):
        head.save(folder / "Masks" / f"ManualSegmentation_{rater}.nii.gz", head.codes(1))


def write_flat(head, folder: Path) -> None:
    for name in ("3DFLAIR", "3DT1", "3DT1GADO", "T2", "DP"):
        head.save(folder / f"{name}.nii")
    head.save(folder / "Consensus.nii", head.codes(1))
    head.save(folder / "ManualSegmentation_1.nii", head.codes(1))


@pytest.fixture
def release(head, tmp_path: Path) -> Path:
    folder = tmp_path / "MSSEG"
    write_patient(head, folder / "MSSEG-Training" / "Training" / "Center_01" / "Patient_01")
    write_patient(head, folder / "MSSEG-Training" / "Training" / "Center_07" / "Patient_02")
    write_patient(head, folder / "MSSEG-Testing" / "Testing" / "Center_01" / "Patient_01")
    return folder


def test_release(release: Path, ingested: Callable) -> None:
    done = ingested(release)
    assert done.code == 0
    assert "(msseg2016): 3 patients such as Center_01_Patient_01" in done.said
    assert "also be" not in done.said
    database = done.store["MSSEG"]
    assert database.modalities == ALL
    assert tuple(database.schemas) == ("lesion",)  # the consensus, where nothing else is asked for
    cases = {case.name: case for case in database.cases}
    assert {name: case.site for name, case in cases.items()} == {
        "Center_01_Patient_01": "Center_01",
        "Center_07_Patient_02": "Center_07",
        "Testing_Center_01_Patient_01": "Center_01",
    }
    assert cases["Testing_Center_01_Patient_01"].split == "test"
    assert sum(case.split == "test" for case in database.cases) == 1
    files = {s["role"]: s["file"] for s in database.sources(cases["Center_01_Patient_01"])}
    assert files["T1c"] == "GADO_preprocessed.nii.gz"
    assert files["PD"] == "DP_preprocessed.nii.gz"
    assert files["label:lesion"] == "Consensus.nii.gz"
    assert {"STAGE", "RATERS", "UNUSED_FILES"} <= set(done.codes("note"))


@pytest.mark.parametrize(
    ("raters", "annotations"),
    [("all", {"lesion", "rater1", "rater2", "rater3"}), ("rater2", {"rater2", "lesion"}), ("consensus", {"lesion"})],
)
def test_raters(release: Path, raters: str, annotations: set[str]) -> None:
    found = look(release, raters=raters)
    assert found.schemas == dict.fromkeys(annotations, ("lesion",))
    assert len(found.cases) == 3
    assert all(set(labels) == annotations for labels in found.annotations.values())


def test_raw_images_where_there_are_no_others(head, tmp_path: Path) -> None:
    folder = tmp_path / "Center_01" / "Patient_01"
    write_patient(head, folder)
    for file in (folder / "Preprocessed_Data").iterdir():
        file.unlink()
    found = look(tmp_path)
    assert found.modalities == {"Center_01_Patient_01": ALL}
    assert found.names("Center_01_Patient_01")["T1c"] == "GADO.nii.gz"
    assert "STAGE" not in found.codes()


def test_flat_release(head, tmp_path: Path) -> None:
    write_flat(head, tmp_path / "Unprocessed" / "01016SACH")
    write_flat(head, tmp_path / "Unprocessed" / "08002CHJE")
    found = look(tmp_path / "Unprocessed")
    assert (found.layout, found.evidence) == ("msseg2016", "2 patients such as 01016SACH")
    assert found.errors == []
    assert set(found.modalities.values()) == {ALL}
    assert [(case.case, case.site) for case in found.files.cases] == [("01016SACH", "01"), ("08002CHJE", "08")]
    assert set(map(tuple, found.annotations.values())) == {("lesion",)}


def test_no_label(release: Path) -> None:
    for file in (release / "MSSEG-Training/Training/Center_07/Patient_02/Masks").iterdir():
        file.unlink()
    assert look(release).errors == [("MISSING_FILE", "Center_07_Patient_02")]
