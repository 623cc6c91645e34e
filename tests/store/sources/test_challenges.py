"""Challenges as records: what a record of ten lines says, from the names of files alone."""

from pathlib import Path

import pytest

from multiseg.errors import SourceError
from multiseg.store.sources.challenge_layout import Challenge, challenge_layout
from multiseg.store.sources.challenges import CHALLENGES
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import FoundFiles, SourceOptions

EXAMPLE = Challenge(
    name="example",
    title="Example 2030",
    pathology="stroke",
    files=(r"(?:.*/)?(?P<site>[A-Z]+)/(?P<subject>P\d+)(?:_v(?P<session>\d))?/(?:(?P<stage>raw|clean)/)?{what}",),
    case="{subject}_visit{session}",
    images={"t1": "T1", "dwi": "DWI"},
    labels={"lesions": "lesion"},
    brain_mask=("brain",),
    stages={"clean": "without skull", "raw": ""},
    test_part="unlabelled",
)


def find(challenge: Challenge, *files: str, root: str = "/data/example") -> FoundFiles:
    found = challenge_layout(challenge).find(Folder(Path(root), tuple(sorted(files))), SourceOptions())
    assert isinstance(found, FoundFiles)
    return found


def test_the_groups_of_an_expression() -> None:
    found = find(EXAMPLE, "OSLO/P1_v2/t1.nii.gz", "OSLO/P1_v2/lesions.nii", "OSLO/P1_v2/brain.nii", "OSLO/P1_v2/x.nii")
    assert {(role.case, role.kind, role.name) for role in found.roles} == {
        ("P1_visit2", "image", "T1"), ("P1_visit2", "label", "lesion"), ("P1_visit2", "brain mask", "brain mask"),
    }  # fmt: skip
    assert {tuple(role.fields.items()) for role in found.roles} == {
        (("subject", "P1"), ("session", "2"), ("site", "OSLO"))
    }
    assert found.unused == ["OSLO/P1_v2/x.nii"]
    assert (found.pathology, found.source, list(found.required)) == ("stroke", "Example 2030", ["lesion"])


def test_an_empty_group_leaves_its_part_of_the_name_out() -> None:
    assert [role.case for role in find(EXAMPLE, "OSLO/P1/t1.nii.gz").roles] == ["P1"]


def test_images_are_of_the_preferred_stage() -> None:
    names = [f"OSLO/P1/{stage}/{word}.nii" for stage in ("raw", "clean") for word in ("t1", "dwi")]
    found = find(EXAMPLE, *names, "OSLO/P1/lesions.nii")
    assert sorted(Path(str(role.file)).parent.name for role in found.roles) == ["P1", "clean", "clean"]
    (note,) = found.findings
    assert (note.code, note.severity) == ("STAGE", "note")
    assert "images are from clean (without skull); raw is not used. To use raw, move clean out" in note.message
    assert find(EXAMPLE, *names[:2]).findings == ()


@pytest.mark.parametrize("place", ["test/OSLO/P1/t1.nii", "Testing/a/OSLO/P1/t1.nii"])
def test_the_test_part_may_lack_labels(place: str) -> None:
    found = find(EXAMPLE, place, "train/OSLO/P2/t1.nii")
    assert set(found.may_lack_labels) == {"P1"}
    assert {role.case: role.fields.get("split") for role in found.roles} == {"P1": "test", "P2": None}


@pytest.mark.parametrize(("labelled", "split"), [(True, None), (False, "test")])
def test_a_labelled_case_in_a_part_without_labels_is_no_test_case(labelled: bool, split: str | None) -> None:
    (challenge,) = [challenge for challenge in CHALLENGES if challenge.name == "brats_men_rt"]
    stem = "Validation/BraTS-MEN-RT-0001-1/BraTS-MEN-RT-0001-1"
    found = find(challenge, f"{stem}_t1c.nii.gz", *([f"{stem}_gtv.nii.gz"] if labelled else []))
    assert {role.fields.get("split") for role in found.roles} == {split}
    assert set(found.may_lack_labels) == (set() if labelled else {"BraTS-MEN-RT-0001-1"})


def test_a_test_case_of_mrbrains_2013_is_of_the_test_split() -> None:
    (challenge,) = [challenge for challenge in CHALLENGES if challenge.name == "mrbrains13"]
    found = find(challenge, "TestData/1/T1.nii", "TrainingData/2/T1.nii", "TrainingData/2/LabelsForTraining.nii")
    assert {role.case: role.fields.get("split") for role in found.roles} == {"1": "test", "2": None}
    assert set(found.may_lack_labels) == {"1"}


def test_a_refused_challenge_says_why() -> None:
    (challenge,) = [challenge for challenge in CHALLENGES if challenge.refusal]
    with pytest.raises(SourceError, match="is MSSEG-2, whose labels are only the new lesions") as caught:
        find(challenge, "013/flair_time01_on_middle_space.nii.gz")
    assert caught.value.code == "NO_FULL_LESIONS"
