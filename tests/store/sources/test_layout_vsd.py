"""The Virtual Skeleton Database's names: ISLES 2015 and BraTS 2013, 2015."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from looking import look

from multiseg.errors import SourceError

SISS = ("MR_T1", "MR_T2", "MR_Flair", "MR_DWI")
BRATS = ("MR_T1", "MR_T1c", "MR_T2", "MR_Flair")


def save_mha(path: Path, array: np.ndarray) -> None:
    """With SimpleITK, whose arrays run k j i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing([6.0] * 3)
    SimpleITK.WriteImage(image, str(path))


def write_case(head, folder: Path, names, codes=(), suffix: str = ".nii", label: str = "Brain.XX.O.OT") -> None:
    for at, name in enumerate([*(f"Brain.XX.O.{name}" for name in names), *([label] if codes else [])]):
        stem = f"VSD.{name}.{700 + at}"
        array = head.codes(*codes) if name == label else head.image()
        (save_mha if suffix == ".mha" else head.save)(folder / stem / f"{stem}{suffix}", array)


def test_siss(head, tmp_path: Path, ingested: Callable) -> None:
    for number in ("1", "2"):
        write_case(head, tmp_path / "isles" / "SISS2015_Training" / number, SISS, codes=(1,))
    write_case(head, tmp_path / "isles" / "SISS2015_Testing" / "1", SISS)
    done = ingested(tmp_path / "isles")
    assert done.code == 0, done.said
    assert "(isles2015)" in done.said
    assert "could also be" not in done.said
    database = done.store["isles"]
    assert database.pathology == "ischaemic stroke"
    assert {case.modalities for case in database.cases} == {("FLAIR", "T1", "T2", "DWI")}
    assert [case.name for case in database.cases] == ["1", "2", "test_1"]
    assert [bool(case.annotated[0]) for case in database.cases] == [True, True, False]
    assert database["test_1"].split == "test"
    assert all((case.foreground_count > 0).all() for case in database.cases[:2])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mha", ".nii"])
def test_brats_2015(head, tmp_path: Path, ingested: Callable, suffix: str) -> None:
    root = tmp_path / "BRATS2015_Training"
    label = "Brain_3more.XX.O.OT"
    for case in ("brats_tcia_pat100_0001", "brats_tcia_pat100_0205"):
        write_case(head, root / "HGG" / case, BRATS, (1, 2, 3, 4), suffix, label)
    write_case(head, root / "LGG" / "0001", BRATS, (2, 3), suffix, "Brain_3more.XX.XX.OT")
    write_case(head, root / "HGG" / "0001", BRATS, (2, 4), suffix, label)
    done = ingested(root)
    assert done.code == 0, done.said
    assert "(brats2015)" in done.said
    assert "could also be" not in done.said
    database = done.store["BRATS2015_Training"]
    assert database.modalities == ("FLAIR", "T1", "T1c", "T2")
    assert database.schemas["tumour"].names == ("necrosis", "oedema", "non-enhancing", "enhancing")
    by_name = {case.name: case for case in database.cases}
    assert set(by_name) == {"HGG_0001", "LGG_0001", "brats_tcia_pat100_0001", "brats_tcia_pat100_0205"}
    first, second = by_name["brats_tcia_pat100_0001"], by_name["brats_tcia_pat100_0205"]
    assert (first.foreground_count > 0).all()
    assert (first.subject, first.session) == ("brats_tcia_pat100", "0001")
    assert first.split == second.split  # one patient, two visits
    assert by_name["LGG_0001"].participant["grade"] == "LGG"


def test_a_training_case_needs_its_label(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "SISS2015_Training" / "1", SISS, codes=(1,))
    write_case(head, tmp_path / "SISS2015_Training" / "2", SISS)
    assert look(tmp_path / "SISS2015_Training").errors == [("MISSING_FILE", "2")]


def test_codes_of_tumours_are_no_stroke(head, tmp_path: Path, ingested: Callable) -> None:
    write_case(head, tmp_path / "SISS2015_Training" / "1", SISS, codes=(1, 4))
    done = ingested(tmp_path / "SISS2015_Training")
    assert done.code == 3
    assert done.codes("error") == ["LABEL_CODES"]


def test_tissue_at_risk_is_no_lesion(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "SPES" / "1", ("MR_CBF", "MR_T1c", "MR_T2", "MR_DWI"), codes=(1,))
    with pytest.raises(SourceError, match=r"perfusion maps \(MR_CBF\)"):
        look(tmp_path / "SPES")
