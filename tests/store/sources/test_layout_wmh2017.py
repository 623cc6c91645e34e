"""WMH 2017: two depths of folders, 2 = other pathology, further observers, pre/ before orig/."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

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


def test_sites_scanners_and_parts(head, tmp_path: Path) -> None:
    write_all(head, tmp_path / "WMH")
    found = look(tmp_path / "WMH")
    assert (found.layout, found.others, found.errors) == ("wmh2017", (), [])
    assert set(found.cases) == {"Utrecht_0", "Singapore_50", "Amsterdam_100", "Amsterdam_150"}
    assert set(found.modalities.values()) == {("FLAIR", "T1")}
    case = found.cases["Amsterdam_150"]
    assert (case.site, case.participant["scanner"], case.split) == ("Amsterdam", "GE1T5", "test")
    assert found.cases["Utrecht_0"].site == "Utrecht"
    assert list(found.schemas) == ["lesion"]  # the consensus; the observers are left out with a note
    assert {"RATERS", "CHOSEN_FILES"} <= set(found.codes("note"))
    assert "4 cases use FLAIR and T1 from pre/" in found.messages("CHOSEN_FILES")[0]


@pytest.mark.slow
def test_other_pathology_is_ignored_and_never_foreground(head, tmp_path: Path, ingested: Callable) -> None:
    write_all(head, tmp_path / "WMH")
    done = ingested(tmp_path / "WMH", "--raters", "all")
    assert done.code == 0, done.said
    assert "(wmh2017)" in done.said
    database = done.store["WMH"]
    case = database["Utrecht_0"]
    assert list(database.schemas) == ["lesion", "rater_o3", "rater_o4"]
    assert case.annotated.tolist() == [True, True, True]
    assert database["Singapore_50"].annotated.tolist() == [True, False, False]
    assert case.foreground_count.tolist() == [[8], [8], [8]]
    label = np.asarray(database.group["label"][case.row])
    assert [int((part == 255).sum()) for part in label] == [8, 0, 8]


@pytest.mark.parametrize("lost", ["FLAIR T1", "T1"])
def test_without_bias_correction(head, tmp_path: Path, lost: str) -> None:
    write_all(head, tmp_path / "WMH")
    for name in lost.split():
        (tmp_path / "WMH" / PLACES[0] / "pre" / f"{name}.nii.gz").unlink()
    found = look(tmp_path / "WMH")
    assert found.modalities["Utrecht_0"] == ("FLAIR", "T1")
    assert ("MIXED_FILES" in found.codes("warning")) == (lost == "T1")
    assert "1 from orig/" in found.messages("CHOSEN_FILES")[0]


def test_a_training_case_needs_its_label(head, tmp_path: Path) -> None:
    write_all(head, tmp_path / "WMH")
    for place in (PLACES[1], PLACES[3]):
        (tmp_path / "WMH" / place / "wmh.nii.gz").unlink()
    assert look(tmp_path / "WMH").errors == [("MISSING_FILE", "Singapore_50")]
