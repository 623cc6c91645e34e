"""WMH 2017: two depths of folders, 2 = other pathology, further observers, pre/ before orig/."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

PLACES = ("training/Utrecht/0", "training/Singapore/50", "training/Amsterdam/GE3T/100", "test/Amsterdam/GE1T5/150")


def write_case(head, folder: Path, *codes: int) -> None:
    for where in ("pre", "orig"):
        for name in ("FLAIR", "T1", "3DT1"):
            head.save(folder / where / f"{name}.nii.gz")
    head.save(folder / "orig" / "3DT1_mask.nii.gz", head.codes(1))
    head.save(folder / "wmh.nii.gz", head.codes(*codes).astype(np.float32))


def write_all(head, root: Path) -> None:
    for place in PLACES:
        write_case(head, root / place, 1, 2)
    for observer, codes in (("o3", (1,)), ("o4", (1, 2))):
        at = root / "additional_annotations" / f"observer_{observer}" / PLACES[0] / "result.nii.gz"
        head.save(at, head.codes(*codes).astype(np.float32))


def test_sites_scanners_and_parts(head, tmp_path: Path, ingested: Callable) -> None:
    write_all(head, tmp_path / "WMH")
    done = ingested(tmp_path / "WMH")
    assert done.code == 0, done.said
    assert "(wmh2017)" in done.said
    assert "could also be" not in done.said
    database = done.store["WMH"]
    by_name = {case.name: case for case in database.cases}
    assert set(by_name) == {"Utrecht_0", "Singapore_50", "Amsterdam_100", "Amsterdam_150"}
    assert {case.modalities for case in database.cases} == {("FLAIR", "T1")}
    case = by_name["Amsterdam_150"]
    assert (case.site, case.participant["scanner"], case.split) == ("Amsterdam", "GE1T5", "test")
    assert by_name["Utrecht_0"].site == "Utrecht"
    assert list(database.schemas) == ["lesion"]  # the consensus; the observers are left out with a note
    assert {"RATERS", "CHOSEN_FILES"} <= set(done.codes("note"))
    assert "4 cases take FLAIR and T1 from pre/" in str(done.report)


def test_other_pathology_is_ignored_and_never_foreground(head, tmp_path: Path, ingested: Callable) -> None:
    write_all(head, tmp_path / "WMH")
    done = ingested(tmp_path / "WMH", "--raters", "all")
    database = done.store["WMH"]
    case = database["Utrecht_0"]
    assert list(database.schemas) == ["lesion", "rater_o3", "rater_o4"]
    assert case.annotated.tolist() == [True, True, True]
    assert database["Singapore_50"].annotated.tolist() == [True, False, False]
    assert case.foreground_count.tolist() == [[8], [8], [8]]
    label = np.asarray(database.group["label"][case.row])
    assert [int((part == 255).sum()) for part in label] == [8, 0, 8]


@pytest.mark.parametrize("lost", ["FLAIR T1", "T1"])
def test_without_bias_correction(head, tmp_path: Path, ingested: Callable, lost: str) -> None:
    write_all(head, tmp_path / "WMH")
    for name in lost.split():
        (tmp_path / "WMH" / PLACES[0] / "pre" / f"{name}.nii.gz").unlink()
    done = ingested(tmp_path / "WMH")
    assert done.store["WMH"]["Utrecht_0"].modalities == ("FLAIR", "T1")
    assert ("MIXED_FILES" in done.codes("warning")) == (lost == "T1")
    assert "1 from orig/" in str(done.report)


def test_a_training_case_needs_its_label(head, tmp_path: Path, ingested: Callable) -> None:
    write_all(head, tmp_path / "WMH")
    for place in (PLACES[1], PLACES[3]):
        (tmp_path / "WMH" / place / "wmh.nii.gz").unlink()
    done = ingested(tmp_path / "WMH")
    assert done.code == 4
    assert [(f["code"], f["case"]) for f in done.report["findings"] if f["severity"] == "error"] == [
        ("MISSING_FILE", "Singapore_50")
    ]
