"""Names of sequences: what is recognised, what is refused to be guessed, and axes that never reorder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiseg.errors import ModalityError
from multiseg.modalities import (
    CANONICAL_ORDER,
    ModalityAxis,
    canonical_modality,
    in_canonical_order,
    modality_of_file_name,
)

names = st.lists(st.sampled_from([*CANONICAL_ORDER, "MTR", "QSM", "CT"]), max_size=12)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("T1", "T1"), ("t1w", "T1"), ("T1n", "T1"), ("MPRAGE", "T1"), ("t1ce", "T1c"), ("T1-Gd", "T1c"),
        ("T1_post", "T1c"), ("t2f", "FLAIR"), ("T2_FLAIR", "FLAIR"), ("3D.FLAIR", "FLAIR"), ("t2w", "T2"),
        ("T2*", "T2star"), ("DP", "PD"), ("Trace", "DWI"), ("adc", "ADC"), ("SWI", "SWI"),
        ("lesion", None), ("seg", None), ("T3", None), ("", None), ("T1T2", None),
    ],
)  # fmt: skip
def test_spellings_of_public_databases(spelling: str, name: str | None) -> None:
    assert canonical_modality(spelling) == name


def test_canonical_names_mean_themselves() -> None:
    assert [canonical_modality(name) for name in CANONICAL_ORDER] == list(CANONICAL_ORDER)


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("sub-01_T2_FLAIR.nii.gz", "FLAIR"),
        ("sub-01_ce-gadolinium_T1w.nii.gz", "T1c"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "T1"),
        ("BraTS19_t1ce.nii.gz", "T1c"),
        ("FLAIR.nii", "FLAIR"),
        ("patient07.T1.nii.gz", "T1"),
        ("t2.nii.gz.gz", "T2"),
        ("P1_T1_FLAIR.nii.gz", None),
        ("T1_T2.nii.gz", None),
        ("PD_001_T1.nii.gz", None),
        ("lesion.nii.gz", None),
        ("", None),
    ],
)
def test_a_file_name_tells_one_sequence_or_none(file_name: str, name: str | None) -> None:
    assert modality_of_file_name(file_name) == name


@pytest.mark.slow
@given(names)
def test_canonical_order_keeps_every_name_once_and_unknown_ones_as_they_came(given_names: list[str]) -> None:
    ordered = in_canonical_order(given_names)
    assert set(ordered) == set(given_names)
    assert len(ordered) == len(set(ordered))
    known = [name for name in ordered if name in CANONICAL_ORDER]
    assert known == [name for name in CANONICAL_ORDER if name in given_names]
    assert list(ordered[len(known) :]) == list(dict.fromkeys(n for n in given_names if n not in CANONICAL_ORDER))


def test_a_union_by_hand() -> None:
    axis = ModalityAxis.union([["T1", "MTR"], ["FLAIR", "T1"], ["PD"]])
    assert axis.names == ("PD", "FLAIR", "T1", "MTR")


@given(names.filter(bool), names)
def test_growing_an_axis_never_moves_a_channel(held: list[str], new: list[str]) -> None:
    axis = ModalityAxis.union([held])
    grown = axis.grown(new)
    assert grown.names[: len(axis)] == axis.names
    assert set(grown) == set(held) | set(new)
    assert grown.grown(new) == grown


def test_channels_are_places_on_the_axis() -> None:
    axis = ModalityAxis(("T1", "FLAIR"))
    assert axis.channels(["FLAIR", "T1"]) == [1, 0]
    assert (axis[1], len(axis), "T1" in axis, "T2" in axis) == ("FLAIR", 2, True, False)
    with pytest.raises(ModalityError, match=r"no channel for T2: the axis has T1, FLAIR"):
        axis.channels(["T1", "T2"])


@pytest.mark.parametrize("wrong", [(), ("T1", "T1"), ("T1", "")])
def test_an_axis_needs_distinct_names(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ModalityError, match="one or more distinct names"):
        ModalityAxis(wrong)
