"""Choosing cases, and splits that never divide a person."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiseg.errors import StoreError, UsageError
from multiseg.store.cases import CaseFiles
from multiseg.store.catalogue import SPLITS, assign_splits, select, table
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


@pytest.mark.slow
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
    with pytest.raises(StoreError, match="subject 'X' is in the splits 'train' and 'test'"):
        assign_splits([given_split], SHARES, 0, {"X": "train"})
    with pytest.raises(StoreError, match="subject 'X' is in the splits 'test' and 'val'"):
        assign_splits([given_split, CaseFiles("Y", {}, subject="X", split="val")], SHARES, 0)


def test_too_few_subjects_are_all_for_training() -> None:
    assert set(assign_splits(cases(2), SHARES, 0).values()) == {"train"}
    assert set(assign_splits(cases(9), {"train": 1.0}, 0).values()) == {"train"}


@pytest.mark.parametrize("seed", range(4))
def test_two_subjects_suffice_for_two_splits(seed: int) -> None:
    chosen = assign_splits(cases(2), {"train": 0.5, "val": 0.0, "test": 0.5}, seed)
    assert sorted(chosen.values()) == ["test", "train"]


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.5, "val": -0.5}, {"train": 0.5, "dev": 0.5}])
def test_shares_that_cannot_be(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="give shares of train/val/test that add up to 1"):
        assign_splits(cases(3), shares, 0)
    with pytest.raises(UsageError, match="names the split 'dev'"):
        assign_splits([CaseFiles("X", {}, split="dev")], SHARES, 0)


def clinics(sizes: list[int]) -> list[CaseFiles]:
    """A case a subject, of one site a size; those of odd sites have a FLAIR beside the T1."""
    t1, flair = Path("t1.nii"), Path("flair.nii")
    return [
        CaseFiles(f"S{site}_{n}", {"T1": t1} | ({"FLAIR": flair} if site % 2 else {}), site=f"S{site}")
        for site, size in enumerate(sizes)
        for n in range(size)
    ]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 20))
def test_every_site_is_shared_out_alike(sizes: list[int], seed: int) -> None:
    chosen = assign_splits(clinics(sizes), SHARES, seed)
    if sum(sizes) < 3:
        return
    totals = {split: list(chosen.values()).count(split) for split in SPLITS}
    for site, size in enumerate(sizes):
        for split in SPLITS:
            found = sum(chosen[f"S{site}_{n}"] == split for n in range(size))
            # A run on a circle that is dealt evenly holds its share, but for its two ends.
            assert abs(found - size * totals[split] / sum(sizes)) < 2, (site, split)


def test_sets_of_sequences_are_shared_out_alike() -> None:
    everybody = [
        CaseFiles(f"P{n}", {name: Path("x.nii") for name in (("T1", "T2") if n % 4 else ("T1",))}) for n in range(80)
    ]
    for seed in range(5):
        chosen = assign_splits(everybody, SHARES, seed)
        few = [chosen[case.case] for case in everybody if len(case.images) == 1]
        assert {split: few.count(split) for split in SPLITS} == {
            "train": pytest.approx(14, abs=1),
            "val": pytest.approx(2, abs=1),
            "test": pytest.approx(4, abs=1),
        }


def test_everybody_may_come_into_every_split() -> None:
    drawn = [assign_splits(clinics([6, 6]), SHARES, seed) for seed in range(60)]
    for case in clinics([6, 6]):
        assert {chosen[case.case] for chosen in drawn} == set(SPLITS)


@pytest.mark.slow
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_an_ingest_of_several_sites_in_pieces_ends_with_the_same_split(sizes: list[int], data: st.DataObject) -> None:
    everybody = clinics(sizes)
    at_once = assign_splits(everybody, SHARES, 0)
    done = data.draw(st.sets(st.sampled_from([case.case for case in everybody])))
    assert assign_splits(everybody, SHARES, 0, {name: at_once[name] for name in done}) == at_once


@given(st.integers(0, 12), st.integers(1, 12), st.integers(0, 5))
def test_a_second_delivery_keeps_the_shares(first: int, second: int, seed: int) -> None:
    """Patients who came before count, so that three new ones do not become a third each."""
    before = assign_splits(cases(first), SHARES, seed)
    held = {f"P{n}": before[f"P{n}_0"] for n in range(first)}
    new = [CaseFiles(f"N{n}", {}) for n in range(second)]
    both = [*before.values(), *assign_splits(new, SHARES, seed, held).values()]
    if len(both) >= 3 and not 0 < first < 3:
        assert all(abs(both.count(split) - share * len(both)) < 2 for split, share in SHARES.items())
    if second >= 3:
        assert set(both) == set(SPLITS)


def test_the_last_free_ones_fill_an_empty_split() -> None:
    fixed = [CaseFiles(f"F{n}", {}, split="train") for n in range(8)]
    for seed in range(10):
        chosen = assign_splits([*fixed, CaseFiles("X", {}), CaseFiles("Y", {})], SHARES, seed)
        assert {chosen["X"], chosen["Y"]} == {"val", "test"}
