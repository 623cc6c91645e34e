"""FreeSurfer's subjects: which of many files count, and who is who."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

ASEG = (2, 3, 4, 8, 11, 16, 41, 85)
SEVEN = ("cortical grey matter", "basal ganglia", "white matter", "lesion", "ventricles", "cerebellum", "brainstem")


def write_subject(head, mri: Path, *left_out: str, more: tuple[str, ...] = ()) -> None:
    for name in {"T1", "orig", "norm", *more} - set(left_out):
        head.save(mri / f"{name}.mgz")
    if "brainmask" not in left_out:
        head.save(mri / "brainmask.mgz", np.where(head.brain, 90, 0).astype(np.uint8))
    if "aseg" not in left_out:
        head.save(mri / "aseg.mgz", head.codes(*ASEG).astype(np.int32))
    head.save(mri / "aparc+aseg.mgz", head.codes(2, 1035, 2001, 4).astype(np.int32))


def test_subjects(head, tmp_path: Path, ingested: Callable) -> None:
    folder = tmp_path / "subjects"
    for name in ("bert", "ernie", "fsaverage"):
        write_subject(head, folder / name / "mri")
    head.save(folder / "ernie" / "mri" / "FLAIR.mgz")
    (folder / "QA").mkdir()
    (folder / "QA" / "report.txt").write_text("fine")
    done = ingested(folder)
    assert done.code == 0
    assert "(freesurfer): 2 subjects such as bert" in done.said
    assert "also be" not in done.said
    database = done.store["subjects"]
    assert [(case.name, case.modalities) for case in database.cases] == [("bert", ("T1",)), ("ernie", ("FLAIR", "T1"))]
    assert database.schemas["tissue"].names == SEVEN
    assert [s.kind for s in database.schemas["tissue"].structures] == 7 * ["tissue"]
    assert database.recipe.brain_mask == "file"
    counts = dict(zip(SEVEN, database.cases[0].foreground_count[0], strict=True))
    assert {name for name, count in counts.items() if count} == set(SEVEN) - {"lesion"}
    assert counts["cortical grey matter"] == counts["white matter"] == 2 * counts["brainstem"]
    notes = [f for f in done.report["findings"] if f["code"] == "NOT_A_SUBJECT"]
    assert {f["file"] for f in notes} == {"fsaverage", "QA"}
    unused = next(f for f in done.report["findings"] if f["code"] == "UNUSED_FILES")
    assert unused["file"] == "bert/mri/aparc+aseg.mgz"


@pytest.mark.parametrize("folder", ["bert", "bert/mri"])
def test_the_folder_of_one_subject(head, tmp_path: Path, folder: str) -> None:
    write_subject(head, tmp_path / "bert" / "mri")
    found = look(tmp_path / folder)
    assert (list(found.cases), found.errors) == (["bert"], [])


@pytest.mark.slow
def test_flat_subjects(head, tmp_path: Path, ingested: Callable) -> None:
    write_subject(head, tmp_path / "fs" / "bert", "aseg", "brainmask")
    head.save(tmp_path / "fs" / "bert" / "T1_brain.mgz", np.where(head.brain, 90, 0).astype(np.uint8))
    done = ingested(tmp_path / "fs")
    assert done.code == 0
    (case,) = done.store["fs"].cases
    assert case.modalities == ("T1",)
    assert done.store["fs"].recipe.brain_mask == "file"
    assert case.foreground_count[0][SEVEN.index("cortical grey matter")] > 0  # 1035 and 2001 of aparc+aseg


def test_visits_of_one_person(head, tmp_path: Path) -> None:
    """The longitudinal stream holds every scan twice, and the average of all."""
    for name in ("ann_1", "ann_2", "ann", "ann_1.long.ann", "ann_2.long.ann", "sub-07_ses-b"):
        write_subject(head, tmp_path / "fs" / name / "mri")
    found = look(tmp_path / "fs")
    cases = [(case.case, case.subject, case.session) for case in found.files.cases]
    assert cases == [("ann_1", "ann", "ann_1"), ("ann_2", "ann", "ann_2"), ("sub-07_ses-b", "sub-07", "b")]
    left_out = {f.file: f.message for f in found.files.findings if f.code == "NOT_A_SUBJECT"}
    assert set(left_out) == {"ann", "ann_1.long.ann", "ann_2.long.ann"}
    assert "the scan of ann_1 processed again" in left_out["ann_1.long.ann"]


def test_two_subjects_of_one_name(head, tmp_path: Path) -> None:
    for site in ("paris", "oslo"):
        write_subject(head, tmp_path / "fs" / site / "sub01" / "mri")
    assert list(look(tmp_path / "fs").cases) == ["oslo_sub01", "paris_sub01"]


def test_what_is_missing(head, tmp_path: Path) -> None:
    write_subject(head, tmp_path / "fs" / "good" / "mri")
    write_subject(head, tmp_path / "fs" / "no_t1" / "mri", "T1")
    write_subject(head, tmp_path / "fs" / "no_mask" / "mri", "brainmask")
    found = look(tmp_path / "fs")
    assert list(found.cases) == ["good"]
    errors = {f.case: f.message for f in found.files.findings if f.severity == "error"}
    assert "no T1.mgz" in errors["no_t1"]
    assert "--modality orig=T1" in errors["no_t1"]
    assert "no brain mask" in errors["no_mask"]
    again = look(tmp_path / "fs", modalities={"orig": "T1", "T1": "skip"}, brain_mask="nonzero")
    assert (list(again.cases), again.errors) == (["good", "no_mask", "no_t1"], [])


@pytest.mark.slow
def test_a_code_that_no_one_knows(head, tmp_path: Path, ingested: Callable) -> None:
    write_subject(head, tmp_path / "fs" / "bert" / "mri")
    head.save(tmp_path / "fs" / "bert" / "mri" / "aseg.mgz", head.codes(2, 3, 801).astype(np.int32))
    done = ingested(tmp_path / "fs")
    assert (done.code, done.codes("error")) == (3, ["LABEL_CODES"])
    assert any("unknown codes: 801" in f["message"] for f in done.report["findings"])
    again = ingested(tmp_path / "fs", "--labels", "tissue:freesurfer,801=ignore")
    assert again.code == 0


def test_real_subject(data: Path, ingested: Callable) -> None:
    done = ingested(data / "freesurfer")
    assert done.code == 0
    counts = done.store["freesurfer"].cases[0].foreground_count[0] * 6.0**3 / 1000
    ml = dict(zip(SEVEN, counts, strict=True))
    assert 440 < ml["cortical grey matter"] < 540
    assert 440 < ml["white matter"] < 540
    assert 140 < ml["cerebellum"] < 170
    assert 25 < ml["brainstem"] < 45
    assert ml["lesion"] == 0
