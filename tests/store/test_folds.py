"""Folds for cross-validation: every person is tested once, and every database is divided alike."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from multiseg.errors import UsageError
from multiseg.store.folds import Fold, people_of, read_fold, splits_of_fold, take_fold
from multiseg.store.preparation.grids import Grid
from multiseg.store.reader import Case, open_store


def case_of(database: str, name: str, subject: str, site: str = "", scan: str = "") -> Case:
    return Case(
        database=database, name=name, row=0, pathology="ms", subject=subject, session="", site=site, split="train",
        modalities=("FLAIR",), annotated=np.ones(1, bool), foreground_count=np.ones((1, 1), int),
        grid=Grid(np.eye(4), (1, 1, 1)), content={"FLAIR": scan or f"scan of {database}/{name}"},
    )  # fmt: skip


def splits_of(cases: list[Case], fold: Fold) -> dict[str, str]:
    return {f"{database}/{name}": split for (database, name), split in splits_of_fold(cases, fold).items()}


def two_databases() -> list[Case]:
    """17 people with two visits each, at two sites, and 6 with one visit."""
    many = [case_of("a", f"a{n}-{visit}", f"person{n}", site=f"site{n % 2}") for n in range(17) for visit in (1, 2)]
    return [*many, *(case_of("b", f"b{n}", f"person{n}") for n in range(6))]


def test_every_person_is_tested_once_and_every_database_divided_alike() -> None:
    cases = two_databases()
    by_fold = [splits_of(cases, Fold(index, 5, seed=3)) for index in range(5)]
    tested = Counter(name for splits in by_fold for name, split in splits.items() if split == "test")
    assert tested == dict.fromkeys((f"{case.database}/{case.name}" for case in cases), 1)
    for splits in by_fold:
        assert splits.keys() == tested.keys()
        people = {(case.database, case.subject, splits[f"{case.database}/{case.name}"]) for case in cases}
        assert len(people) == 17 + 6, "a person is in two parts"
        sizes = Counter((database, split) for database, _, split in people)
        assert sizes["a", "test"] in (3, 4)
        assert sizes["b", "test"] in (1, 2)
        assert sizes["a", "val"] in (1, 2)
        assert sizes["b", "val"] == 1
        sites = Counter(case.site for case in cases if splits[f"{case.database}/{case.name}"] == "test")
        assert abs(sites["site0"] - sites["site1"]) <= 4  # two people


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_cases() -> None:
    cases = two_databases()
    assert splits_of(cases, Fold(1, 5)) == splits_of(cases[::-1], Fold(1, 5))
    assert splits_of(cases, Fold(1, 5)) != splits_of(cases, Fold(1, 5, seed=1))


def test_people_who_share_a_scan_are_one_person() -> None:
    cases = [case_of("a", "1", "p", scan="x"), case_of("a", "2", "q", scan="y"), case_of("b", "3", "r", scan="y")]
    cases += [case_of("b", "4", "p", scan="x"), case_of("b", "5", "q", scan="z")]
    names = [[f"{case.database}{case.name}" for case in person] for person in people_of(cases)]
    assert names == [["a1", "b4"], ["a2", "b3"], ["b5"]]
    later = case_of("c", "6", "r", scan="x")  # of the person of a1
    joined = people_of([*cases, later, case_of("c", "7", "r", scan="z")])
    assert [[case.name for case in person] for person in joined] == [["1", "4", "5", "6", "7"], ["2", "3"]]


def test_sets_of_sequences_are_divided_alike_where_scans_have_no_digest() -> None:
    """As in stores that an older multiseg made."""
    cases = [
        replace(case_of("a", f"{n}", f"p{n}"), content={}, modalities=("FLAIR", "T1") if n % 2 else ("FLAIR",))
        for n in range(20)
    ]
    for index in range(5):
        splits = splits_of(cases, Fold(index, 5))
        tested = Counter(case.modalities for case in cases if splits[f"a/{case.name}"] == "test")
        assert sorted(tested.values()) == [2, 2]


def test_no_fold_is_empty() -> None:
    cases = [case_of(database, database, "p") for database in "abcdef"]
    for index in range(6):
        assert Counter(splits_of(cases, Fold(index, 6)).values())["test"] == 1
    with pytest.raises(UsageError, match="7 folds, but only 6 people"):
        splits_of(cases, Fold(0, 7))


@pytest.mark.parametrize("text", ["5", "1/2/3", "-1/5", "a/b", ""])
def test_a_text_that_is_no_fold(text: str) -> None:
    with pytest.raises(UsageError, match="such as 0/5"):
        read_fold(text)


@pytest.mark.parametrize("text", ["5/5", "0/1", "0/0"])
def test_folds_count_from_0_and_are_at_least_two(text: str) -> None:
    with pytest.raises(UsageError, match=f"there is no fold {text}"):
        read_fold(text)


@pytest.mark.slow  # makes the store of the session
def test_a_fold_takes_the_place_of_the_splits_of_a_store(store_url: str) -> None:
    tested: list[str] = []
    for index in range(4):
        store = open_store(store_url)
        take_fold(store, Fold(index, 4))
        parts = Counter((case.database, case.split) for case in store.cases)
        assert parts == {(name, split): n for name in store for split, n in (("train", 2), ("val", 1), ("test", 1))}
        assert all(store[case.database][case.name].split == case.split for case in store.cases)
        tested += [f"{case.database}/{case.name}" for case in store.cases if case.split == "test"]
    assert len(set(tested)) == len(tested) == 16
