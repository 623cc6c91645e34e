"""FastSurfer's subjects: FreeSurfer's folders with other files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

DEEP = "aparc.DKTatlas+aseg.deep.mgz"


def write_subject(head, mri: Path, *, surfaces: bool = False) -> None:
    head.save(mri / "orig.mgz")
    head.save(mri / "mask.mgz", head.brain.astype(np.uint8))
    head.save(mri / DEEP, head.codes(2, 41, 1002, 2002, 16).astype(np.int32))
    if surfaces:
        head.save(mri / "T1.mgz")
        head.save(mri / "aseg.mgz", head.codes(2, 3).astype(np.int32))


def test_segmentation_only(head, tmp_path: Path, ingested: Callable) -> None:
    write_subject(head, tmp_path / "fast" / "sub1" / "mri")
    done = ingested(tmp_path / "fast")
    assert done.code == 0
    assert "(fastsurfer): 1 subjects such as sub1" in done.said
    assert "also be" not in done.said
    database = done.store["fast"]
    assert database.modalities == ("T1",)
    assert database.recipe.brain_mask == "file"
    present = {
        n for n, c in zip(database.schemas["tissue"].names, database.cases[0].foreground_count[0], strict=True) if c
    }
    assert present == {"white matter", "cortical grey matter", "brainstem"}
    sources = {s["role"]: s["file"] for s in database.sources(database.cases[0])}
    assert sources == {"T1": "orig.mgz", "label:tissue": DEEP, "brain_mask": "mask.mgz"}


def test_after_the_surfaces(head, tmp_path: Path, ingested: Callable) -> None:
    write_subject(head, tmp_path / "fast" / "sub1" / "mri", surfaces=True)
    done = ingested(tmp_path / "fast")
    assert "(fastsurfer)" in done.said
    sources = {s["role"]: s["file"] for s in done.store["fast"].sources(done.store["fast"].cases[0])}
    assert (sources["T1"], sources["label:tissue"]) == ("T1.mgz", DEEP)
    assert "UNUSED_FILES" in done.codes("note")


def test_no_segmentation(head, tmp_path: Path, ingested: Callable) -> None:
    write_subject(head, tmp_path / "fast" / "sub1" / "mri")
    write_subject(head, tmp_path / "fast" / "sub2" / "mri")
    (tmp_path / "fast" / "sub2" / "mri" / DEEP).unlink()
    done = ingested(tmp_path / "fast")
    assert (done.code, done.codes("error")) == (4, ["MISSING_FILE"])
    assert done.report["failed"] == ["sub2"]
