"""MSLUB: the same patients at several stages, and changes that are no lesions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from looking import look


def write_patient(head, folder: Path, *, prefix: str = "", mask: bool = True) -> None:
    for name in ("FLAIR", "T1W", "T1WKS", "T2W"):
        head.save(folder / f"{prefix}{name}.nii.gz")
    head.save(folder / f"{prefix}consensus_gt.nii.gz", head.codes(1))
    if mask:
        head.save(folder / f"{prefix}brainmask.nii.gz", head.brain.astype(np.uint8))


def test_one_stage_of_several(head, tmp_path: Path, ingested: Callable) -> None:
    folder = tmp_path / "open_ms_data"
    for patient in ("patient01", "patient02"):
        write_patient(head, folder / "cross_sectional" / "raw" / patient, mask=False)
        write_patient(head, folder / "cross_sectional" / "coregistered" / patient)
    for name in ("study1_FLAIR", "study2_FLAIR", "gt", "brainmask"):
        head.save(folder / "longitudinal" / "coregistered" / "patient01" / f"{name}.nii.gz")
    done = ingested(folder)
    assert done.code == 0
    assert "(open_ms): 2 folders such as patient01" in done.said
    assert "also be" not in done.said
    database = done.store["open_ms_data"]
    assert [case.name for case in database.cases] == ["patient01", "patient02"]
    assert database.modalities == ("FLAIR", "T1", "T1c", "T2")
    assert database.schemas["lesion"].names == ("lesion",)
    assert database.recipe.brain_mask == "file"
    note = next(f["message"] for f in done.report["findings"] if f["code"] == "STAGE")
    assert "images are from coregistered; raw is not used" in note


def test_original_names(head, tmp_path: Path) -> None:
    write_patient(head, tmp_path / "lit" / "patient01", prefix="patient01_")
    found = look(tmp_path / "lit")
    assert (found.layout, found.errors) == ("open_ms", [])
    assert found.modalities == {"patient01": ("FLAIR", "T1", "T1c", "T2")}
    assert "STAGE" not in found.codes()


def test_no_consensus(head, tmp_path: Path) -> None:
    for patient in ("patient01", "patient02"):
        write_patient(head, tmp_path / "lit" / patient)
    (tmp_path / "lit" / "patient02" / "consensus_gt.nii.gz").unlink()
    assert look(tmp_path / "lit").errors == [("MISSING_FILE", "patient02")]
