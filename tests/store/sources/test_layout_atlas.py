"""ATLAS v2: template space and raw, sites, and a test part without masks."""

from collections.abc import Callable
from pathlib import Path

import pytest

MNI = ("space-MNI152NLin2009aSym_T1w", "space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask")
RAW = ("space-orig_desc-brain_T1w", "space-orig_label-lesion_desc-T1lesion_mask")


def write_case(head, folder: Path, subject: str, names=MNI, labelled: bool = True) -> None:
    for name in names[: 2 if labelled else 1]:
        array = head.codes(1) if name.endswith("mask") else None
        head.save(folder / subject / "ses-1" / "anat" / f"{subject}_ses-1_{name}.nii.gz", array)


@pytest.mark.parametrize(
    ("training", "testing", "names"),
    [
        ("Training", "Testing", MNI),
        ("derivatives/ATLAS/Training", "derivatives/ATLAS/Testing", MNI),
        ("Training_Raw", "Testing_Raw", RAW),
    ],
)
def test_releases(head, tmp_path: Path, ingested: Callable, training: str, testing: str, names) -> None:
    root = tmp_path / "ATLAS_2"
    write_case(head, root / training / "R001", "sub-r001s001", names)
    write_case(head, root / training / "R009", "sub-r009s002", names)
    write_case(head, root / testing / "R003", "sub-r003s001", names, labelled=False)
    done = ingested(root)
    assert done.code == 0, done.said
    assert "ATLAS v2 (atlas2)" in done.said
    database = done.store["ATLAS_2"]
    assert [case.modalities for case in database.cases] == [("T1",)] * 3
    assert [case.site for case in database.cases] == ["R001", "R003", "R009"]
    assert [case.subject for case in database.cases] == ["sub-r001s001", "sub-r003s001", "sub-r009s002"]
    assert {case.session for case in database.cases} == {"ses-1"}
    assert [bool(case.annotated[0]) for case in database.cases] == [True, False, True]
    assert database.cases[1].split == "test"
    assert database.cases[0].foreground_count.tolist() == [[8]]


def test_a_training_case_needs_its_mask(head, tmp_path: Path, ingested: Callable) -> None:
    write_case(head, tmp_path / "Training" / "R001", "sub-r001s001")
    write_case(head, tmp_path / "Training" / "R001", "sub-r001s002", labelled=False)
    done = ingested(tmp_path / "Training")
    assert done.code == 4
    assert done.codes("error") == ["MISSING_FILE"]


def test_two_releases_of_the_same_patients_are_not_mixed(head, tmp_path: Path, ingested: Callable) -> None:
    write_case(head, tmp_path / "ATLAS_2" / "Training" / "R001", "sub-r001s001")
    write_case(head, tmp_path / "ATLAS_2" / "Training_Raw" / "R001", "sub-r001s001", RAW)
    done = ingested(tmp_path / "ATLAS_2")
    assert done.code == 3
    assert "Ingest the folder of one release" in done.said
