"""UCSF-PDGM: seven sequences on one grid."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from looking import look

SEQUENCES = ("T1", "T1c", "T2", "FLAIR", "SWI", "DWI", "ADC")


def write(head, folder: Path, case: str) -> None:
    for name in (*SEQUENCES, "T1_bias", "T1c_bias", "ASL", "DTI_eddy_FA"):
        head.save(folder / f"{case}_nifti" / f"{case}_{name}.nii.gz")
    head.save(folder / f"{case}_nifti" / f"{case}_brain_segmentation.nii.gz", head.brain.astype(np.uint8))
    head.save(folder / f"{case}_nifti" / f"{case}_tumor_segmentation.nii.gz", head.codes(1, 2, 4))


def test_patients_and_later_scans(head, tmp_path: Path, ingested: Callable) -> None:
    for case in ("UCSF-PDGM-0004", "UCSF-PDGM-0409", "UCSF-PDGM-0409_FU001d"):
        write(head, tmp_path / "PDGM", case)
    done = ingested(tmp_path / "PDGM")
    assert done.code == 0
    assert "(ucsf_pdgm)" in done.said
    assert "could also be" not in done.said
    database = done.store["PDGM"]
    assert database.modalities == ("FLAIR", "SWI", "T1", "T1c", "T2", "DWI", "ADC")
    assert {case.name: (case.subject, case.session) for case in database.cases} == {
        "UCSF-PDGM-0004": ("UCSF-PDGM-0004", ""),
        "UCSF-PDGM-0409": ("UCSF-PDGM-0409", ""),
        "UCSF-PDGM-0409_FU001d": ("UCSF-PDGM-0409", "FU001d"),
    }
    assert database.schemas["tumour"].names == ("necrosis", "oedema", "enhancing")
    assert all((case.foreground_count == 8).all() for case in database.cases)
    assert database.recipe.brain_mask == "file"
    assert "UNUSED_FILES" in done.codes("note")


def test_no_label(head, tmp_path: Path) -> None:
    write(head, tmp_path / "PDGM", "UCSF-PDGM-0004")
    (tmp_path / "PDGM" / "UCSF-PDGM-0004_nifti" / "UCSF-PDGM-0004_tumor_segmentation.nii.gz").unlink()
    found = look(tmp_path / "PDGM")
    assert (found.cases, found.errors) == ({}, [("MISSING_FILE", "UCSF-PDGM-0004")])
