"""FastSurfer's subjects: FreeSurfer's folders with other files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from looking import look

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


def test_after_the_surfaces(head, tmp_path: Path) -> None:
    write_subject(head, tmp_path / "fast" / "sub1" / "mri", surfaces=True)
    found = look(tmp_path / "fast")
    assert found.layout == "fastsurfer"
    assert found.names("sub1") == {"T1": "T1.mgz", "label:tissue": DEEP, "brain_mask": "mask.mgz"}
    assert "UNUSED_FILES" in found.codes("note")


def test_no_segmentation(head, tmp_path: Path) -> None:
    write_subject(head, tmp_path / "fast" / "sub1" / "mri")
    write_subject(head, tmp_path / "fast" / "sub2" / "mri")
    (tmp_path / "fast" / "sub2" / "mri" / DEEP).unlink()
    assert look(tmp_path / "fast").errors == [("MISSING_FILE", "sub2")]
