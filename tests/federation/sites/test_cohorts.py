"""Numbers over groups of cases: whatever sets are asked for, no difference of two of them is a few cases."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiseg.errors import CheckpointError
from multiseg.federation.sites.cohorts import FILE, Cohorts, admitted, chosen, cut

NAMES = [f"case{number:02d}" for number in range(14)]


def atoms(sets):
    """How the sets cut each other: the members that are in the same ones of them, without those that are in none."""
    found = {}
    for name in NAMES:
        found.setdefault(tuple(name in one for one in sets), set()).add(name)
    return [members for key, members in found.items() if any(key)]


@given(st.lists(st.sets(st.sampled_from(NAMES)), max_size=8), st.integers(1, 5))
def test_no_sum_of_what_was_told_is_over_fewer_than_least(wanted, least):
    groups, told = (), []
    for one in wanted:
        kept = admitted(one, groups, least)
        assert kept <= one
        groups = cut(groups, kept)
        told.append(kept)
    assert all(len(atom) >= least for atom in atoms(told))
    assert sorted(map(sorted, groups)) == sorted(map(sorted, atoms(told)))
    # What was told is told again, alike: a round that is repeated comes to the same numbers.
    assert all(admitted(kept, groups, least) == kept for kept in told)


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=8), st.integers(1, 5))
def test_numbers_of_cases_are_whole_groups(nums, least):
    groups, told = (), []
    for num in nums:
        found = chosen(NAMES, groups, least, num)
        assert len(found) >= min(num if num is not None else 14, 14)
        assert set(chosen(NAMES, cut(groups, frozenset(found)), least, num)) == set(found)
        groups = cut(groups, frozenset(found))
        told.append(set(found))
    assert all(len(atom) >= least for atom in atoms(told))


def test_the_tenth_case_is_not_told_by_nine_of_ten():
    ten = frozenset(NAMES[:10])
    groups = cut((), admitted(ten, (), 5))
    kept = admitted(ten - {NAMES[0]}, groups, 5)
    assert len(kept) == 5  # four more stay out with it
    assert NAMES[0] not in kept
    assert admitted({*ten, NAMES[10]}, groups, 5) == ten  # a new case waits until there are five
    assert admitted(NAMES[:15], groups, 4) == frozenset(NAMES)


def test_what_was_told_is_remembered_over_experiments(tmp_path):
    one = Cohorts(tmp_path, 5)
    assert one.admit("ms", NAMES[:4]) == frozenset()
    assert one.admit("ms", NAMES[:10]) == frozenset(NAMES[:10])
    assert one.admit("wmh", NAMES[:9]) == frozenset(NAMES[:9])  # another database's cases are others
    assert len(Cohorts(tmp_path, 5).admit("ms", NAMES[:9])) == 5
    assert one.choose("ms", NAMES, 1) == one.choose("ms", NAMES, 5)
    held = json.loads((tmp_path / FILE).read_text())
    assert [len(group) for group in held["told"]["ms"]] == [5, 5]
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CheckpointError, match="records the cases"):
        one.admit("ms", NAMES)
