"""Which subsets of a case's sequences are asked for."""

import pytest

from multiseg.errors import UsageError
from multiseg.evaluation.subsets import check_subsets, chosen_subsets


def test_a_list_gives_what_a_case_has_in_its_own_order() -> None:
    wanted = "FLAIR,T2+FLAIR,T1+T2"
    assert chosen_subsets(wanted, ("FLAIR", "T2")) == [("FLAIR",), ("FLAIR", "T2")]
    assert chosen_subsets(wanted, ("T2",)) == []


def test_a_subset_that_is_listed_twice_counts_once() -> None:
    """Else its cases would count twice in every mean and number."""
    assert chosen_subsets("FLAIR+T1,FLAIR,T1+FLAIR,FLAIR", ("FLAIR", "T1")) == [("FLAIR", "T1"), ("FLAIR",)]


def test_names() -> None:
    assert chosen_subsets("full", ("T1", "T2")) == [("T1", "T2")]
    assert chosen_subsets("all", ("T1", "T2")) == [("T1", "T2"), ("T1",), ("T2",)]
    check_subsets("all")
    check_subsets("FLAIR,T1+T2star")


@pytest.mark.parametrize("wanted", ["some", "FLAIR,", "t1ce", "T1 + T2", ""])
def test_what_is_no_list_of_sequences_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match=r"are not sequences: give one of all, full, or list"):
        check_subsets(wanted)
