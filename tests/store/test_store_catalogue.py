"""Choosing cases, and splits that never divide a person."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiseg.errors import StoreError, UsageError
from multiseg.store.catalogue import SPLITS, assign_splits, select, table
from multiseg.store.cases import CaseFiles
from multiseg.store.reader import open_store

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def cases(count: int, visits: int = 1) -> list[CaseFiles]:
    return [CaseFiles(f"P{n}_{visit}", {}, subject=f"P{n}") for n in range(count) for visit in range(visits)]


def test_select(store_url: str) -> None:
    store = open_store(store_url)
    everything = store.cases
    assert select(store) == everything
    assert {c.database for c in select(store, modalities=["T1c"])} == {"birch"}
    assert [c.name for c in select(store, ["cedar"], ["FLAIR"])] == ["C001", "C002", "C004"]
    assert {c.database for c in select(store, pathology="glioma")} == {"birch"}
    by_split = {split: select(store, split=split) for split in SPLITS}
    assert sorted(c.name for some in by_split.values() for c in some) == sorted(c.name for c in everything)
    assert all(by_split.values())


def test_select_by_participants_columns(store_url: str) -> None:
    store = open_store(store_url)
    dogwood = store["dogwood"].cases
    women = select(store, participants={"sex": "F"})
    assert [c.name for c in women] == [c.name for c in dogwood if c.participant["sex"] == "F"]
    age = sorted(c.participant["age"] for c in dogwood)[2]
    older = select(store, participants={"age": lambda years: years > age})
    assert [c.name for c in older] == [c.name for c in dogwood if c.participant["age"] > age]
    assert 0 < len(older) < 3
    with pytest.raises(
        StoreError, match=r"no database has the column \['height'\]; there are \['age', 'scanner', 'sex'\]"
    ):
        select(store, participants={"height": 1.8})


def test_select_refuses_what_is_not_there(store_url: str) -> None:
    store = open_store(store_url)
    with pytest.raises(StoreError, match="has no database 'elm'"):
        select(store, ["elm"])
    with pytest.raises(UsageError, match="there is no split 'validation'; splits are train, val, test"):
        select(store, split="validation")


def test_a_table_has_a_row_a_case(store_url: str) -> None:
    listed = table(open_store(store_url).cases)
    assert len(listed) == 16
    row = listed.set_index("case").loc["B001"]
    assert (row.database, row.pathology, row.modalities) == ("birch", "glioma", "FLAIR T1 T1c T2")
    assert row.foreground_voxels > 0


@given(st.integers(3, 60), st.integers(1, 3), st.integers(0, 5))
def test_splits_are_by_subject_and_none_is_empty(count: int, visits: int, seed: int) -> None:
    chosen = assign_splits(cases(count, visits), SHARES, seed)
    by_subject: dict[str, set[str]] = {}
    for case in cases(count, visits):
        by_subject.setdefault(case.subject, set()).add(chosen[case.case])
    assert all(len(splits) == 1 for splits in by_subject.values())
    sizes = {split: sum(found == {split} for found in by_subject.values()) for split in SPLITS}
    assert min(sizes.values()) >= 1
    assert all(abs(sizes[split] - SHARES[split] * count) < 2 for split in SPLITS)
    assert chosen == assign_splits(list(reversed(cases(count, visits))), SHARES, seed)


def test_a_seed_draws_its_own_split() -> None:
    draws = {tuple(assign_splits(cases(12), SHARES, seed).values()) for seed in range(5)}
    assert len(draws) > 1


@given(st.integers(3, 40), st.integers(0, 40), st.integers(0, 3))
def test_an_interrupted_ingest_ends_with_the_same_split(count: int, done: int, seed: int) -> None:
    at_once = assign_splits(cases(count), SHARES, seed)
    held = {case.subject: at_once[case.case] for case in cases(count)[:done]}
    assert assign_splits(cases(count), SHARES, seed, held) == at_once


def test_what_the_store_holds_and_the_files_say_counts_first() -> None:
    given_split = CaseFiles("X", {}, subject="X", split="test")
    chosen = assign_splits([*cases(5), given_split], SHARES, 0, {"P0": "val", "gone": "train"})
    assert (chosen["X"], chosen["P0_0"]) == ("test", "val")
    with pytest.raises(StoreError, match="subject 'X' stands in the splits 'train' and 'test'"):
        assign_splits([given_split], SHARES, 0, {"X": "train"})
    with pytest.raises(StoreError, match="subject 'X' stands in the splits 'test' and 'val'"):
        assign_splits([given_split, CaseFiles("Y", {}, subject="X", split="val")], SHARES, 0)


def test_too_few_subjects_are_all_for_training() -> None:
    assert set(assign_splits(cases(2), SHARES, 0).values()) == {"train"}
    assert set(assign_splits(cases(9), {"train": 1.0}, 0).values()) == {"train"}


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.5, "val": -0.5}, {"train": 0.5, "dev": 0.5}])
def test_shares_that_cannot_be(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be shares of train/val/test that add up to 1"):
        assign_splits(cases(3), shares, 0)
    with pytest.raises(UsageError, match="names the split 'dev'"):
        assign_splits([CaseFiles("X", {}, split="dev")], SHARES, 0)
