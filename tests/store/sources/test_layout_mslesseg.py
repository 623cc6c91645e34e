"""MSLesSeg: names in which T1 is a time point and a sequence."""

from collections.abc import Callable
from pathlib import Path

from looking import look


def write_visit(head, folder: Path, stem: str) -> None:
    for name in ("FLAIR", "T1", "T2"):
        head.save(folder / f"{stem}_{name}.nii.gz")
    head.save(folder / f"{stem}_MASK.nii.gz", head.codes(1))


def write_dataset(head, folder: Path) -> Path:
    write_visit(head, folder / "train" / "P1" / "T1", "P1_T1")
    write_visit(head, folder / "train" / "P1" / "T2", "P1_T2")
    write_visit(head, folder / "train" / "P2" / "T1", "P2_T1")
    write_visit(head, folder / "test" / "P54", "P54")
    return folder


def test_visits(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write_dataset(head, tmp_path / "MSLesSeg Dataset"))
    assert done.code == 0
    assert "(mslesseg): 3 patients such as P1 with 4 visits" in done.said
    assert "also be" not in done.said
    assert done.codes("warning") == []
    database = done.store["MSLesSeg Dataset"]
    assert database.modalities == ("FLAIR", "T1", "T2")
    assert database.schemas["lesion"].names == ("lesion",)
    cases = {case.name: (case.subject, case.session) for case in database.cases}
    assert cases == {"P1_time1": ("P1", "T1"), "P1_time2": ("P1", "T2"), "P2_time1": ("P2", "T1"), "P54": ("P54", "")}
    assert {case.name for case in database.cases if case.split == "test"} == {"P54"}
    files = {s["role"]: s["file"] for s in database.sources(database["P1_time2"])}
    assert files == {
        "FLAIR": "P1_T2_FLAIR.nii.gz", "T1": "P1_T2_T1.nii.gz", "T2": "P1_T2_T2.nii.gz",
        "label:lesion": "P1_T2_MASK.nii.gz",
    }  # fmt: skip


def test_no_mask(head, tmp_path: Path) -> None:
    folder = write_dataset(head, tmp_path / "ms")
    (folder / "train/P2/T1/P2_T1_MASK.nii.gz").unlink()
    assert look(folder).errors == [("MISSING_FILE", "P2_time1")]


def test_a_visit_in_another_visits_folder_is_not_taken(head, tmp_path: Path) -> None:
    folder = write_dataset(head, tmp_path / "ms")
    for file in (folder / "train/P1/T2").iterdir():
        file.rename(file.with_name(file.name.replace("P1_T2", "P1_T3")))
    found = look(folder)
    assert list(found.cases) == ["P1_time1", "P2_time1", "P54"]
    assert "UNUSED_FILES" in found.codes("note")
