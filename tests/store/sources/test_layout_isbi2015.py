"""ISBI 2015: visits of a person, two raters and no consensus."""

from collections.abc import Callable
from pathlib import Path

import pytest
from looking import look

from multiseg.errors import UsageError


def write_visit(head, folder: Path, person: str, visit: str, *, masks: bool = True) -> None:
    for name in ("flair", "mprage", "pd", "t2"):
        head.save(folder / person / "preprocessed" / f"{person}_{visit}_{name}_pp.nii")
        head.save(folder / person / "orig" / f"{person}_{visit}_{name}.nii.gz")
    for rater in (1, 2) if masks else ():
        label = head.codes(1)
        label[:, :, 20:] = 0
        label[10, 10, 8] = rater == 1  # what only the first one saw
        head.save(folder / person / "masks" / f"{person}_{visit}_mask{rater}.nii", label)


@pytest.fixture
def challenge(head, tmp_path: Path) -> Path:
    folder = tmp_path / "isbi"
    write_visit(head, folder / "training", "training01", "01")
    write_visit(head, folder / "training", "training01", "02")
    write_visit(head, folder / "training", "training02", "01")
    write_visit(head, folder / "testdata_website", "test01", "01", masks=False)
    return folder


def test_challenge(challenge: Path, ingested: Callable) -> None:
    done = ingested(challenge)
    assert done.code == 0
    assert "(isbi2015): 3 people such as test01 with 4 visits" in done.said
    assert "also be" not in done.said
    database = done.store["isbi"]
    assert database.modalities == ("PD", "FLAIR", "T1", "T2")
    assert {name: schema.names for name, schema in database.schemas.items()} == {
        "rater1": ("lesion",), "rater2": ("lesion",),
    }  # fmt: skip
    cases = {case.name: (case.subject, case.session, case.annotated.tolist()) for case in database.cases}
    assert cases["training01_02"] == ("training01", "02", [True, True])
    assert cases["test01_01"] == ("test01", "01", [False, False])
    assert database["test01_01"].split == "test"
    assert database["training01_01"].split == database["training01_02"].split
    assert {s["role"]: s["file"] for s in database.sources(database["training01_01"])}[
        "T1"
    ] == "training01_01_mprage_pp.nii"
    assert "STAGE" in done.codes("note")


def test_one_rater(challenge: Path) -> None:
    found = look(challenge, raters="rater2")
    assert found.schemas == {"rater2": ("lesion",)}
    assert found.names("training01_02")["label:rater2"] == "training01_02_mask2.nii"
    assert "label:rater1" not in found.names("training01_02")


@pytest.mark.slow
def test_majority(challenge: Path, ingested: Callable) -> None:
    done = ingested(challenge, "--raters", "majority")
    assert done.code == 0
    assert {n: s.names for n, s in done.store["isbi"].schemas.items()} == {"lesion": ("lesion",)}


def test_there_is_no_consensus(challenge: Path) -> None:
    with pytest.raises(UsageError, match="has no consensus, only rater1, rater2"):
        look(challenge, raters="consensus")


def test_a_rater_is_missing(challenge: Path) -> None:
    (challenge / "training/training02/masks/training02_01_mask2.nii").unlink()
    found = look(challenge)
    assert found.errors == [("MISSING_FILE", "training02_01")]
    assert "no label 'rater2'" in found.messages("MISSING_FILE")[0]
