"""UPENN-GBM: labels by hand, and by a program."""

from collections.abc import Callable
from pathlib import Path

SEQUENCES = ("T1", "T1GD", "T2", "FLAIR")


def write_images(head, folder: Path, case: str) -> None:
    for name in SEQUENCES:
        head.save(folder / "images_structural" / case / f"{case}_{name}.nii.gz")


def test_two_kinds_of_labels(head, tmp_path: Path, ingested: Callable) -> None:
    folder = tmp_path / "upenn" / "NIfTI-files"
    one, two, none = "UPENN-GBM-00001_11", "UPENN-GBM-00001_21", "UPENN-GBM-00002_11"
    for case in (one, two, none):
        write_images(head, folder, case)
    head.save(folder / "images_segm" / f"{one}_segm.nii.gz", head.codes(1, 2, 4))
    for case in (one, two):
        path = folder / "automated_segm" / f"{case}_automated_approx_segm.nii.gz"
        head.save(path, head.codes(1, 2, 4))
    head.save(folder / "images_segm" / "old" / f"{none}_segm.nii.gz", head.codes(1))
    head.save(folder / "old" / "images_segm" / f"{none}_segm.nii.gz", head.codes(1))
    head.save(folder / "images_structural_unstripped" / one / f"{one}_T1_unstripped.nii.gz")
    done = ingested(tmp_path / "upenn")
    assert "(upenn)" in done.said
    assert "could also be" not in done.said
    assert done.report["failed"] == [none]
    assert "UNUSED_FILES" in done.codes("note")
    database = done.store["upenn"]
    assert database.modalities == ("FLAIR", "T1", "T1c", "T2")
    assert list(database.schemas) == ["tumour", "automated"]
    assert {case.name: case.annotated.tolist() for case in database.cases} == {one: [True, True], two: [False, True]}
    assert (database[one].foreground_count == 8).all()
    assert [(case.subject, case.session) for case in database.cases] == [
        ("UPENN-GBM-00001", "11"),
        ("UPENN-GBM-00001", "21"),
    ]
