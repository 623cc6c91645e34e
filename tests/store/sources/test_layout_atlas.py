"""ATLAS v2: template space and raw, sites, and a test part without masks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from looking import look

from multiseg.errors import SourceError

MNI = ("space-MNI152NLin2009aSym_T1w", "space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask")
RAW = ("space-orig_desc-brain_T1w", "space-orig_label-lesion_desc-T1lesion_mask")
PARTS = [
    ("Training", "Testing", MNI),
    ("derivatives/ATLAS/Training", "derivatives/ATLAS/Testing", MNI),
    ("Training_Raw", "Testing_Raw", RAW),
]


def write_case(head, folder: Path, subject: str, names=MNI, labelled: bool = True) -> None:
    for name in names[: 2 if labelled else 1]:
        array = head.codes(1) if name.endswith("mask") else None
        head.save(folder / subject / "ses-1" / "anat" / f"{subject}_ses-1_{name}.nii.gz", array)


def write_release(head, root: Path, training: str, testing: str, names) -> Path:
    write_case(head, root / training / "R001", "sub-r001s001", names)
    write_case(head, root / training / "R009", "sub-r009s002", names)
    write_case(head, root / testing / "R003", "sub-r003s001", names, labelled=False)
    return root


@pytest.mark.parametrize(("training", "testing", "names"), PARTS)
def test_releases(head, tmp_path: Path, training: str, testing: str, names) -> None:
    found = look(write_release(head, tmp_path / "ATLAS_2", training, testing, names))
    assert (found.layout, found.files.name, found.errors) == ("atlas2", "ATLAS_2", [])
    assert list(found.modalities.values()) == [("T1",)] * 3
    cases = found.files.cases
    assert [case.site for case in cases] == ["R001", "R003", "R009"]
    assert [case.subject for case in cases] == ["sub-r001s001", "sub-r003s001", "sub-r009s002"]
    assert {case.session for case in cases} == {"ses-1"}
    assert [list(case.labels) for case in cases] == [["lesion"], [], ["lesion"]]
    assert [case.split for case in cases] == ["", "test", ""]


@pytest.mark.slow
def test_in_the_store(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write_release(head, tmp_path / "ATLAS_2", *PARTS[0]))
    assert done.code == 0, done.said
    assert "ATLAS v2 (atlas2)" in done.said
    database = done.store["ATLAS_2"]
    assert [bool(case.annotated[0]) for case in database.cases] == [True, False, True]
    assert database.cases[1].split == "test"
    assert database.cases[0].foreground_count.tolist() == [[8]]


def test_a_training_case_needs_its_mask(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "Training" / "R001", "sub-r001s001")
    write_case(head, tmp_path / "Training" / "R001", "sub-r001s002", labelled=False)
    assert look(tmp_path / "Training").errors == [("MISSING_FILE", "sub-r001s002_ses-1")]


def test_two_releases_of_the_same_patients_are_not_mixed(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "ATLAS_2" / "Training" / "R001", "sub-r001s001")
    write_case(head, tmp_path / "ATLAS_2" / "Training_Raw" / "R001", "sub-r001s001", RAW)
    with pytest.raises(SourceError, match="Ingest the folder of one release"):
        look(tmp_path / "ATLAS_2")
