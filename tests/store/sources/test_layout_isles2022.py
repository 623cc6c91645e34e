"""ISLES 2022 in both releases: FLAIR on a grid of its own, empty masks, sessions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

CASES = ("sub-strokecase0001", "sub-strokecase0002")


def write_case(head, root: Path, subject: str, flat: bool, *codes: int) -> None:
    session = "ses-0001"
    stem = f"{subject}_{session}"
    raw = root / "rawdata" / subject / session if flat else root / subject / session
    other_grid = np.diag([12.0, 6, 6, 1])
    other_grid[:3, 3] = head.affine[:3, 3]
    head.save(raw / ("" if flat else "dwi") / f"{stem}_adc.nii.gz")
    head.save(raw / ("" if flat else "dwi") / f"{stem}_dwi.nii.gz")
    flair = raw / f"{stem}_flair.nii.gz" if flat else raw / "anat" / f"{stem}_FLAIR.nii.gz"
    head.save(flair, head.image()[::2], other_grid)
    head.save(root / "derivatives" / subject / session / f"{stem}_msk.nii.gz", head.codes(*codes))


@pytest.mark.parametrize("flat", [False, True])
def test_both_releases(head, tmp_path: Path, flat: bool) -> None:
    root = tmp_path / "ISLES-2022"
    write_case(head, root, CASES[0], flat, 1)
    write_case(head, root, CASES[1], flat)
    found = look(root)
    assert (found.layout, found.errors) == ("isles2022", [])
    assert found.others or flat  # the released one is BIDS as well, in most
    assert found.files.pathology == "ischaemic stroke"
    assert found.schemas == {"lesion": ("lesion",)}
    assert list(found.modalities.values()) == [("FLAIR", "DWI", "ADC")] * 2
    assert [(case.subject, case.session) for case in found.files.cases] == [(name, "ses-0001") for name in CASES]
    assert list(found.annotations.values()) == [["lesion"]] * 2


@pytest.mark.slow
def test_in_the_store(head, tmp_path: Path, ingested: Callable) -> None:
    root = tmp_path / "ISLES-2022"
    write_case(head, root, CASES[0], False, 1)
    write_case(head, root, CASES[1], False)
    done = ingested(root)
    assert done.code == 0, done.said
    assert "(isles2022)" in done.said
    database = done.store["ISLES-2022"]
    assert [case.modalities for case in database.cases] == [("FLAIR", "DWI", "ADC")] * 2
    lesion, no_lesion = database.cases
    assert lesion.foreground_count.tolist() == [[8]]  # on the grid of DWI: not one voxel changed
    assert no_lesion.annotated.all()
    assert no_lesion.foreground_count.tolist() == [[0]]


def test_a_case_without_its_mask_is_no_true_negative(head, tmp_path: Path) -> None:
    root = tmp_path / "stroke"
    for subject in CASES:
        write_case(head, root, subject, True, 1)
    (root / "derivatives" / CASES[1] / "ses-0001" / f"{CASES[1]}_ses-0001_msk.nii.gz").unlink()
    found = look(root)
    assert found.errors == [("MISSING_FILE", f"{CASES[1]}_ses-0001")]
    assert [case.subject for case in found.files.cases] == [CASES[0]]
    unlabelled = look(root, allow_unlabelled=True)
    assert (len(unlabelled.cases), unlabelled.errors) == (2, [])


def test_a_mask_without_scans_is_said(head, tmp_path: Path) -> None:
    root = tmp_path / "stroke"
    write_case(head, root, CASES[0], True, 1)
    head.save(root / "derivatives" / CASES[1] / "ses-0001" / f"{CASES[1]}_ses-0001_msk.nii.gz", head.codes(1))
    assert look(root).errors == [("NO_MODALITY", f"{CASES[1]}_ses-0001")]


def test_real_scans(data: Path, ingested: Callable) -> None:
    """Labels lie on the grid of DWI, 2 mm: every voxel of theirs is in the store."""
    done = ingested(data / "stroke", "--spacing", "2")
    assert done.code == 0, done.said
    first, second = done.store["stroke"].cases
    assert (first.modalities, second.modalities) == (("DWI", "ADC"), ("FLAIR", "DWI", "ADC"))
    assert [int(case.foreground_count[0, 0]) for case in (first, second)] == [835, 523]
