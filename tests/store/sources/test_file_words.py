"""What names of files say, and what they do not."""

import pytest

from multiseg.store.sources.file_words import Meaning, What, meaning_of, split_name

CLEAR = {
    "T1": (What.IMAGE, "T1"),
    "T2_FLAIR": (What.IMAGE, "FLAIR"),
    "T1_IR": (What.IMAGE, "T1IR"),
    "sub-01_ce-gadolinium_T1w": (What.IMAGE, "T1c"),
    "lesion": (What.LABEL, "lesion"),
    "lesion_on_FLAIR": (What.LABEL, "lesion"),
    "Consensus": (What.LABEL, "lesion"),
    "WMH": (What.LABEL, "lesion"),
    "GTV": (What.LABEL, "tumour"),
    "seg": (What.LABEL, "seg"),
    "mask": (What.LABEL, "mask"),
    "lesion-rater2": (What.LABEL, "rater2"),
    "ManualSegmentation": (What.UNCLEAR, ""),
    "manual_3": (What.LABEL, "rater3"),
    "tissue_dlmuse_on_T1": (What.LABEL, "tissue"),
    "tissue3": (What.LABEL, "tissue3"),
    "aparc+aseg": (What.LABEL, "tissue"),
    "brainmask": (What.BRAIN_MASK, "brain mask"),
    "T1_brain_mask": (What.BRAIN_MASK, "brain mask"),
    "csf": (What.ONE_TISSUE, ""),
    "gm_probability": (What.ONE_TISSUE, ""),
    "wm_mask": (What.ONE_TISSUE, ""),
}
UNCLEAR = [
    "T1_mask",  # of the head, of the face, of a lesion?
    "FLAIR_roi",
    "seg_left",
    "brain_seg",
    "lesion_prob",
    "T1_lesion_filled",
    "T1_to_MNI_warp",
    "P1_T1_FLAIR",
    "scan",
    "",
]


@pytest.mark.parametrize("name", CLEAR)
def test_clear_names(name: str) -> None:
    assert meaning_of(name) == Meaning(*CLEAR[name])


@pytest.mark.parametrize("name", UNCLEAR)
def test_names_that_say_nothing_or_two_things(name: str) -> None:
    assert meaning_of(name).what is What.UNCLEAR


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scan_0053_T1", ("scan_0053", "T1")),
        ("a.b-c_T2_FLAIR", ("a.b-c", "T2_FLAIR")),
        ("sub1_lesion_on_FLAIR", ("sub1", "lesion_on_FLAIR")),
        ("brats_2013_pat0001_1", ("brats_2013_pat0001_1", "")),
        ("T1_lesion", ("", "T1_lesion")),
        ("T1_study_01_FLAIR", ("T1_study_01", "FLAIR")),
    ],
)
def test_case_and_role_of_a_flat_name(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts
