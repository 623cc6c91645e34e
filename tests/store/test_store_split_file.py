"""Splits from a file: read as written, and given to every case or to none."""

import json
from pathlib import Path

import pytest

from multiseg.errors import SourceError, UsageError
from multiseg.store.cases import CaseFiles
from multiseg.store.ingest.split_file import apply_splits, read_split_file

NAMED = {"P1": "train", "P2": "val", "P3": "test"}
LISTS = {"train": ["P1"], "val": ["P2"], "test": ["P3"]}
FOLDS = [{"train": ["P1", "P2"], "val": ["P3"]}, {"train": ["P3"], "val": ["P1"]}]


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("split.csv", "case,split\nP1,train\nP2,val\nP3,test\n"),
        ("split.csv", "\ufeffsubject,age,Split\r\nP1,3,Training\r\nP2,4,validation\r\n P3 ,5,TESTING\r\n,,\r\n"),
        ("split.tsv", "participant_id\tsplit\nP1\ttrain\nP2\tvalid\nP3\ttest\nP1\ttrain\n"),
        ("split.json", json.dumps(LISTS)),
        ("split.json", "\ufeff" + json.dumps(LISTS)),
        ("split#1.json", json.dumps(LISTS)),
        ("split.json", json.dumps({"training": ["P1"], "validation": ["P2"], "testing": ["P3"]})),
    ],
)
def test_the_forms_of_a_split_file(tmp_path: Path, name: str, text: str) -> None:
    assert read_split_file(written(tmp_path, name, text)) == NAMED


def test_a_fold_of_nnunet(tmp_path: Path) -> None:
    name = written(tmp_path, "splits_final.json", json.dumps(FOLDS))
    assert read_split_file(f"{name}#0") == {"P1": "train", "P2": "train", "P3": "val"}
    assert read_split_file(f"{name}#1") == {"P3": "train", "P1": "val"}
    with pytest.raises(UsageError, match=r"holds 2 folds, but no fold is named. Name one, counting from 0: .*json#0"):
        read_split_file(name)
    for fold in ("2", "-1", "all"):
        with pytest.raises(UsageError, match=f"holds 2 folds, but there is no fold '{fold}'"):
            read_split_file(f"{name}#{fold}")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("split.csv", "case,group\nP1,train\n", r"has the columns \['case', 'group'\]"),
        ("split.csv", "split\ntrain\n", r"has the columns \['split'\]"),
        ("split.csv", "", r"has the columns \[\]"),
        ("split.csv", "case,split\nP1,holdout\n", "the split 'holdout' of 'P1' is not one of train, val, test"),
        ("split.csv", "case,split\nP1,\n", "the split '' of 'P1' is not one of"),
        ("split.csv", "case,split\nP1,train\nP1,test\n", "puts 'P1' into 'train' and into 'test'"),
        ("split.json", json.dumps({"train": ["P1"], "val": ["P1"]}), "puts 'P1' into 'train' and into 'val'"),
        ("split.json", json.dumps({"train": [{"image": "P1.nii"}]}), "'train' is not a list of names"),
        ("split.json", json.dumps({"fold": ["P1"]}), "the split 'fold' is not one of"),
        ("split.json", json.dumps({"train": []}), "names no case"),
        ("split.json", "3", "is not of the form"),
        ("split.json", "{", "is not valid JSON"),
        ("split.txt", "P1 train", "is not a split file: give a .csv, .tsv or .json"),
    ],
)
def test_what_is_no_split_file(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_split_file(written(tmp_path, name, text))


def test_a_missing_file_or_a_fold_too_many(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.json: No such file"):
        read_split_file(str(tmp_path / "none.json"))
    with pytest.raises(SourceError, match=r"none\.csv does not exist"):
        read_split_file(str(tmp_path / "none.csv"))
    with pytest.raises(UsageError, match="holds one split, not a list of folds; leave out #0"):
        read_split_file(written(tmp_path, "split.json", json.dumps(LISTS)) + "#0")


def splits(cases: list[CaseFiles], given: dict[str, str], *left_out: str) -> list[str]:
    return [case.split for case in apply_splits(cases, given, left_out)]


def test_cases_get_their_split_by_name_or_by_subject() -> None:
    cases = [CaseFiles("A_1", {}, subject="A"), CaseFiles("A_2", {}, subject="A"), CaseFiles("B", {}, split="train")]
    assert splits(cases, {"A": "test", "B": "val"}) == ["test", "test", "val"]
    assert splits(cases, {"A_1": "val", "A_2": "val"}) == ["val", "val", "train"]


def test_nobody_is_forgotten_and_nobody_is_a_stranger() -> None:
    cases = [CaseFiles(f"P{n}", {}) for n in range(8)]
    with pytest.raises(UsageError, match="does not name P1, P2, P3, P4, P5 and 2 more"):
        splits(cases, {"P0": "train"})
    given = {case.case: "train" for case in cases}
    with pytest.raises(UsageError, match=r"names P9, but there is no such case or subject\. Known names: P0, P1"):
        splits(cases, given | {"P9": "test"})
    assert splits(cases, given | {"P9": "test"}, "P9") == ["train"] * 8


@pytest.mark.parametrize("given", [{"A_1": "train", "A_2": "test"}, {"A_1": "train", "A": "test"}])
def test_a_person_is_not_divided(given: dict[str, str]) -> None:
    cases = [CaseFiles("A_1", {}, subject="A"), CaseFiles("A_2", {}, subject="A")]
    with pytest.raises(UsageError, match="the split file puts the subject 'A' into several splits"):
        splits(cases, given)


def test_a_persons_other_visit_with_a_split_of_its_own_counts() -> None:
    cases = [CaseFiles("A_1", {}, subject="A"), CaseFiles("A_2", {}, subject="A", split="test")]
    with pytest.raises(UsageError, match="'A_1' is in 'train', 'A_2' in 'test'"):
        splits(cases, {"A_1": "train"})
