"""Which of several files is taken, and what is left out: said or asked, the same whatever the order of the cases."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multiseg.cli.app import run
from multiseg.errors import LabelError, UsageError
from multiseg.store.sources.pattern_source import PatternSource, find_database
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import SKIP, DatabaseFiles, Role, SourceOptions, without_skipped_labels


def images(files: DatabaseFiles) -> dict[str, dict[str, str]]:
    """Case to sequence to file name."""
    return {case.case: {name: path.name for name, path in case.images.items()} for case in files.cases}


def errors(files: DatabaseFiles) -> list[tuple[str, str]]:
    return [(finding.code, finding.case) for finding in files.findings if finding.severity == "error"]


def messages(files: DatabaseFiles, code: str) -> list[str]:
    return [finding.message for finding in files.findings if finding.code == code]


def write(head, folder: Path, *names: str, **labels: np.ndarray) -> Path:
    for name in names:
        head.save(folder / f"{name}.nii.gz")
    for name, array in labels.items():
        head.save(folder / f"{name}.nii.gz", array)
    return folder


# Sequences


@pytest.mark.parametrize("said", [{"T1_brian": "T1"}, {"T1": "T1", "flari": "skip"}])
def test_a_spelling_that_no_file_has_is_refused(head, tmp_path: Path, said: dict[str, str]) -> None:
    """T1 would have been taken in the place of T1_brain without a word."""
    write(head, tmp_path / "ms" / "pat1", "T1", "FLAIR", lesion=head.codes(1))
    wrong = list(said)[-1]
    with pytest.raises(
        UsageError, match=rf"names '{wrong}', but no file of .*ms has such a name. Names there: FLAIR, T1"
    ):
        find_source(tmp_path / "ms", SourceOptions(modalities=said))
    pattern = PatternSource("ms", tmp_path / "ms", "{case}/{modality}.nii.gz", modalities=said, allow_unlabelled=True)
    with pytest.raises(UsageError, match=f"names '{wrong}'"):
        find_database(pattern)


@pytest.mark.parametrize("other", ["T1_brain", "T1_bet", "T1_stripped", "T1_n4", "T1_to_MNI", "T1_defaced"])
@pytest.mark.parametrize("further", [(), ("FLAIR",)])
def test_a_sequence_in_two_files_is_asked_for(head, tmp_path: Path, other: str, further: tuple[str, ...]) -> None:
    write(head, tmp_path / "ms" / "pat1", "T1", other, *further, lesion=head.codes(1))
    files = find_source(tmp_path / "ms")
    assert (errors(files), files.cases) == ([("DUPLICATE_CASE", "pat1")], ())
    (message,) = messages(files, "DUPLICATE_CASE")
    assert f"two files are T1 of case 'pat1': pat1/T1.nii.gz and pat1/{other}.nii.gz" in message
    assert f"--modality T1=T1 or --modality {other}=T1" in message
    for modalities, taken in (
        ({other: "skip"}, "T1"),
        ({"T1": "skip"}, other),
        ({other: "T1"}, other),
        ({"T1": "T1"}, "T1"),
    ):
        files = find_source(tmp_path / "ms", SourceOptions(modalities=modalities))
        assert images(files)["pat1"]["T1"] == f"{taken}.nii.gz"
        assert errors(files) == []
        said = messages(files, "CHOSEN_SCAN")
        assert said == [] if "skip" in modalities.values() else "by --modality" in said[0]


def test_two_files_of_one_spelling_are_told_apart_by_their_names(head, tmp_path: Path) -> None:
    folder = write(head, tmp_path / "ms" / "pat1", "T1", lesion=head.codes(1))
    for name in ("T1.nii", "lesion.nii"):
        head.save(folder / name, head.codes(1) if "lesion" in name else None)
    (by_label, by_image) = sorted(messages(find_source(tmp_path / "ms"), "DUPLICATE_CASE"))
    assert "--modality lesion.nii=skip or --modality lesion.nii.gz=skip" in by_label
    assert "--modality T1.nii=T1 or --modality T1.nii.gz=T1" in by_image
    for modality in ("skip", "T1"):
        options = SourceOptions(modalities={"T1.nii": modality, "lesion.nii": "skip"})
        (case,) = find_source(tmp_path / "ms", options).cases
        assert case.images["T1"].name == ("T1.nii.gz" if modality == "skip" else "T1.nii")
        assert case.labels["lesion"].name == "lesion.nii.gz"


def test_a_sequence_in_two_files_of_which_none_is_plain(head, tmp_path: Path) -> None:
    write(head, tmp_path / "ms" / "pat1", "T1_bet", "T1_ss", lesion=head.codes(1))
    assert errors(find_source(tmp_path / "ms")) == [("DUPLICATE_CASE", "pat1")]
    files = find_source(tmp_path / "ms", SourceOptions(modalities={"T1_ss": "skip"}))
    assert images(files) == {"pat1": {"T1": "T1_bet.nii.gz"}}


def test_three_files_of_one_sequence(head, tmp_path: Path) -> None:
    write(head, tmp_path / "ms" / "pat1", "T1", "T1_brain", "T1_defaced", lesion=head.codes(1))
    files = find_source(tmp_path / "ms", SourceOptions(modalities={"T1_brain": "skip"}))
    assert "two files are T1" in messages(files, "DUPLICATE_CASE")[0]
    files = find_source(tmp_path / "ms")
    assert "3 files are T1 of case 'pat1'" in messages(files, "DUPLICATE_CASE")[0]


def test_a_sequence_twice_costs_no_other_case(head, tmp_path: Path) -> None:
    write(head, tmp_path / "ms" / "pat1", "T1", "T1_brain", lesion=head.codes(1))
    write(head, tmp_path / "ms" / "pat2", "T1_brain", lesion=head.codes(1))
    files = find_source(tmp_path / "ms")
    assert images(files) == {"pat2": {"T1": "T1_brain.nii.gz"}}
    assert errors(files) == [("DUPLICATE_CASE", "pat1")]


def test_patients_in_one_folder_are_no_case(head, tmp_path: Path) -> None:
    """pat1_T1 beside pat2_T1 is no sequence in two files."""
    write(head, tmp_path / "ms" / "images", "pat1_T1", "pat2_T1")
    with pytest.raises(Exception, match="multiseg does not recognise the layout of"):
        find_source(tmp_path / "ms")


@pytest.mark.slow
def test_a_case_of_which_all_is_skipped_does_not_fail(head, tmp_path: Path, ingested: Callable) -> None:
    write(head, tmp_path / "ms" / "pat1", "T1", lesion=head.codes(1))
    write(head, tmp_path / "ms" / "survey", "scout_T2")
    write(head, tmp_path / "ms" / "phantom", "scout_T2", lesion=head.codes(1))
    done = ingested(tmp_path / "ms", "--modality", "scout_T2=skip")
    assert (done.code, done.codes()) == (0, ["SKIPPED_CASES"])
    assert "2 cases are left out with all their images skipped: phantom, survey" in str(done.report["findings"])
    assert (done.report["written"], done.report["failed"]) == (["pat1"], [])


def test_what_is_skipped_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("A/01_T1.nii", "B/01_scout.nii", "A/02_T2_T1.nii", "A/03_mtr.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = PatternSource("db", tmp_path, "{site}/{case}_{modality}.nii", modalities={"scout": "skip"})
    files = find_database(source)
    assert set(images(files)) == {"01", "02_T2"}
    assert errors(files) == [("NO_MODALITY", "03")]  # nobody said to skip it


def test_a_bids_case_of_which_all_is_skipped(head, tmp_path: Path) -> None:
    for subject, suffix in (("01", "T1w"), ("02", "FLAIR")):
        head.save(tmp_path / "ds" / f"sub-{subject}" / "anat" / f"sub-{subject}_{suffix}.nii.gz")
        lesions = tmp_path / "ds" / "derivatives" / "lesions" / f"sub-{subject}" / "anat"
        head.save(lesions / f"sub-{subject}_label-lesion_mask.nii.gz", head.codes(1))
    files = find_source(tmp_path / "ds", SourceOptions(modalities={"FLAIR": "skip"}))
    assert (list(images(files)), errors(files)) == (["sub-01"], [])
    assert "1 cases are left out" in messages(files, "SKIPPED_CASES")[0]


# One sequence of all


def ibsr(head, root: Path) -> Path:
    for part, case in (("Training_Set", "IBSR_01"), ("Test_Set", "IBSR_02")):
        head.save(root / part / case / f"{case}.nii.gz")
    return root


def test_one_sequence_of_all(head, tmp_path: Path) -> None:
    root = ibsr(head, tmp_path / "ibsr")
    files = find_database(PatternSource("db", root, "*/{case}/{case}.nii.gz", modality="t1w"))
    assert images(files) == {"IBSR_01": {"T1": "IBSR_01.nii.gz"}, "IBSR_02": {"T1": "IBSR_02.nii.gz"}}
    assert files.findings == ()


def test_one_sequence_of_all_contradicts_no_name(head, tmp_path: Path) -> None:
    root = ibsr(head, tmp_path / "ibsr")
    head.save(root / "Test_Set" / "IBSR_03_FLAIR" / "IBSR_03_FLAIR.nii.gz")
    files = find_database(PatternSource("db", root, "*/{case}/{case}.nii.gz", modality="T1"))
    assert list(images(files)) == ["IBSR_01", "IBSR_02"]
    assert errors(files) == [("AMBIGUOUS_NAME", "IBSR_03_FLAIR")]
    named = PatternSource("db", root, "*/{case}/{case}.nii.gz", modality="T1", modalities={"IBSR_03_FLAIR": "FLAIR"})
    assert images(find_database(named))["IBSR_03_FLAIR"] == {"FLAIR": "IBSR_03_FLAIR.nii.gz"}


@pytest.mark.slow
def test_one_sequence_of_all_from_the_command_line(head, tmp_path: Path, ingested: Callable) -> None:
    root = ibsr(head, tmp_path / "ibsr")
    pattern = ("--pattern", "*/{case}/{case}.nii.gz", "--allow-unlabelled")
    done = ingested(root, *pattern, "--modality", "T1")
    assert done.code == 0
    assert [case.modalities for case in done.store["ibsr"].cases] == [("T1",), ("T1",)]


def test_one_sequence_of_all_that_cannot_be_meant(head, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ibsr(head, tmp_path / "ibsr")
    with pytest.raises(UsageError, match="is not a known sequence"):
        find_database(PatternSource("db", root, "*/{case}/{case}.nii.gz", modality="T1_brain"))
    with pytest.raises(UsageError, match=r"the pattern .* says each image's sequence by \{modality\}"):
        find_database(PatternSource("db", root, "*/{case}/{modality}.nii.gz", modality="T1"))
    folder = write(head, tmp_path / "ms" / "pat1", "T1", lesion=head.codes(1)).parent
    verify = ["verify", str(folder)]
    assert run([*verify, "--modality", "T1"]) == 2
    assert "is for all images, so it needs --pattern" in capsys.readouterr().err
    assert run([*verify, "--pattern", "{case}/T1.nii.gz", "--modality", "T1", "--modality", "T2"]) == 2
    assert "gives two sequences for all images: T1 and T2" in capsys.readouterr().err
    assert run([*verify, "--modality", "a=T1", "--modality", "a=T2"]) == 2
    assert "--modality gives two values for 'a': 'T1' and 'T2'" in capsys.readouterr().err
    assert run([*verify, "--pattern", "{case}/T1.nii.gz", "--label", "a{case}.nii", "--label", "b{case}.nii"]) == 2
    assert "--label gives two values for 'lesion'" in capsys.readouterr().err


# Labels


TWO_MASKS = [("gt", "seg"), ("lesion", "seg"), ("label", "mask"), ("manual", "roi"), ("lesion", "wmh"), ("tumor", "gt")]


@pytest.mark.parametrize("names", TWO_MASKS)
def test_two_masks_of_one_case_are_asked_for(head, tmp_path: Path, names: tuple[str, str]) -> None:
    write(head, tmp_path / "ms" / "pat1", "T1", **{names[0]: head.codes(1)})
    write(head, tmp_path / "ms" / "pat2", "T1", **dict.fromkeys(names, head.codes(1)))
    files = find_source(tmp_path / "ms")
    assert (list(images(files)), errors(files)) == (["pat1"], [("DUPLICATE_CASE", "pat2")])
    for skipped, kept in (names, names[::-1]):
        files = find_source(tmp_path / "ms", SourceOptions(codes={skipped: "skip"}))
        (case,) = [case for case in files.cases if case.case == "pat2"]
        assert [path.name for path in case.labels.values()] == [f"{kept}.nii.gz"]
    both = find_source(tmp_path / "ms", SourceOptions(codes={name: f"1={name}" for name in names}))
    assert errors(both) == []
    assert {name: path.name for name, path in both.cases[1].labels.items()} == {n: f"{n}.nii.gz" for n in names}


ODD = {"255": (255,), "2": (2,), "several": (1, 2), "values": (7, 9)}


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("first", [True, False])
def test_an_odd_label_is_its_own_cases_error(head, tmp_path: Path, ingested: Callable, odd: str, first: bool) -> None:
    labels = [head.codes(*ODD[odd]), head.codes(1)]
    for case, label in zip(("pat1", "pat2"), labels if first else labels[::-1], strict=True):
        write(head, tmp_path / "ms" / case, "T1", lesion=label)
    done = ingested(tmp_path / "ms")
    assert (done.code, done.codes("error")) == (4, ["LABEL_CODES"])
    assert done.report["written"] == ["pat2" if first else "pat1"]


@pytest.mark.parametrize("first", [True, False])
def test_labels_that_mostly_do_not_explain_themselves_are_asked_for(head, tmp_path: Path, first: bool) -> None:
    """1 alone would be a lesion, but in most cases it is one of several structures."""
    several = [head.codes(1, 2), head.codes(1, 2, 4)]
    labels = [head.codes(1), *several] if first else [*several, head.codes(1)]
    for number, label in enumerate(labels):
        write(head, tmp_path / "ms" / f"pat{number}", "T1", seg=label)
    with pytest.raises(LabelError, match=r"has the codes 1, 2 \(all 3 labels: 1, 2, 4\)\. .*seg:1=NAME,2=NAME,4=NAME"):
        find_source(tmp_path / "ms")


def test_a_large_label_is_its_own_cases_error(head, tmp_path: Path) -> None:
    write(head, tmp_path / "ms" / "pat1", "T1", mask=head.brain.astype(np.uint8))
    write(head, tmp_path / "ms" / "pat2", "T1", mask=head.codes(1))
    files = find_source(tmp_path / "ms")
    assert (list(images(files)), errors(files)) == (["pat2"], [("LABEL_SIZE", "pat1")])


# Brain masks


def visits(head, root: Path, mask: str, brain: np.ndarray) -> Path:
    for person in ("01", "02"):
        for visit in ("Baseline", "FollowUp"):
            head.save(root / person / visit / "FLAIR.nii.gz")
        head.save(root / person / f"{mask}.nii.gz", brain)
    return root


@pytest.mark.parametrize("mask", ["brain", "brainmask", "brain_mask"])
def test_a_persons_brain_mask_is_that_of_every_visit(head, tmp_path: Path, mask: str) -> None:
    root = visits(head, tmp_path / "ms", mask, head.brain.astype(np.uint8))
    by_looking = find_source(root, SourceOptions(allow_unlabelled=True))
    pattern = PatternSource(
        "db", root, "{subject}/{session}/{modality}.nii.gz", brain_mask=f"{{subject}}/{mask}.nii.gz"
    )
    for files in (by_looking, find_database(pattern)):
        assert {case.case: case.brain_mask for case in files.cases} == {
            f"{person}_{visit}": root / person / f"{mask}.nii.gz"
            for person in ("01", "02")
            for visit in ("Baseline", "FollowUp")
        }
        assert files.brain_mask == "file"
        assert "is the brain mask of all visits of its subject: 01_Baseline" in messages(files, "MASK_OF_PERSON")[0]


@pytest.mark.parametrize("visits", [("Baseline",), ("V1",), ("Baseline", "FollowUp")])
def test_the_brain_mask_of_one_person(head, tmp_path: Path, visits: tuple[str, ...]) -> None:
    """One visit is enough, whatever it is called."""
    for number, person in enumerate(("01", "02")):
        for visit in visits[: 1 + number]:
            head.save(tmp_path / "ms" / person / visit / "FLAIR.nii.gz")
        head.save(tmp_path / "ms" / person / "brainmask.nii.gz", head.brain.astype(np.uint8))
    files = find_source(tmp_path / "ms", SourceOptions(allow_unlabelled=True))
    masks = [case.brain_mask.relative_to(tmp_path / "ms").as_posix() for case in files.cases]
    assert masks == ["01/brainmask.nii.gz", *["02/brainmask.nii.gz"] * len(visits)]


def test_a_mask_above_different_people_is_nobodys(head, tmp_path: Path) -> None:
    for case in ("x/a", "x/b", "y/c", "y/d"):
        head.save(tmp_path / "ms" / case / "FLAIR.nii.gz")
    head.save(tmp_path / "ms" / "x" / "brainmask.nii.gz", head.brain.astype(np.uint8))
    files = find_source(tmp_path / "ms", SourceOptions(allow_unlabelled=True))
    assert [case.brain_mask for case in files.cases] == [None] * 4
    assert "x/brainmask.nii.gz" in messages(files, "UNUSED_FILES")[0]


def test_a_visits_own_brain_mask_goes_first(head, tmp_path: Path) -> None:
    root = visits(head, tmp_path / "ms", "brainmask", head.brain.astype(np.uint8))
    head.save(root / "01" / "Baseline" / "brainmask.nii.gz", head.brain.astype(np.uint8))
    files = find_source(root, SourceOptions(allow_unlabelled=True))
    masks = {case.case: case.brain_mask.relative_to(root).as_posix() for case in files.cases}
    assert masks["01_Baseline"] == "01/Baseline/brainmask.nii.gz"
    assert masks["01_FollowUp"] == "01/brainmask.nii.gz"


def test_a_bids_mask_without_session_is_that_of_every_session(head, tmp_path: Path) -> None:
    for session in ("1", "2"):
        head.save(tmp_path / "ds" / "sub-01" / f"ses-{session}" / "anat" / f"sub-01_ses-{session}_T1w.nii.gz")
    mask = tmp_path / "ds" / "derivatives" / "bet" / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz"
    head.save(mask, head.brain.astype(np.uint8))
    files = find_source(tmp_path / "ds", SourceOptions(allow_unlabelled=True))
    assert {case.case: case.brain_mask for case in files.cases} == {"sub-01_ses-1": mask, "sub-01_ses-2": mask}


def test_two_brain_masks_of_one_case_are_asked_for(head, tmp_path: Path) -> None:
    masks = dict.fromkeys(("brainmask", "betmask"), head.brain.astype(np.uint8))
    write(head, tmp_path / "ms" / "pat1", "T1", lesion=head.codes(1), **masks)
    (message,) = messages(find_source(tmp_path / "ms"), "DUPLICATE_CASE")
    assert message.endswith("pat1/betmask.nii.gz and pat1/brainmask.nii.gz. Leave one out: --modality brainmask=skip.")
    (case,) = find_source(tmp_path / "ms", SourceOptions(modalities={"brainmask": "skip"})).cases
    assert case.brain_mask.name == "betmask.nii.gz"


def test_a_persons_mask_is_skipped_as_asked(head, tmp_path: Path) -> None:
    root = visits(head, tmp_path / "ms", "brainmask", head.brain.astype(np.uint8))
    files = find_source(root, SourceOptions(allow_unlabelled=True, modalities={"brainmask": "skip"}))
    assert [case.brain_mask for case in files.cases] == [None] * 4
    assert messages(files, "SKIPPED_CASES") == []


def test_an_image_called_brain_is_no_mask(head, tmp_path: Path) -> None:
    root = visits(head, tmp_path / "ms", "brain", head.image())
    files = find_source(root, SourceOptions(allow_unlabelled=True))
    assert [case.brain_mask for case in files.cases] == [None] * 4
    assert files.brain_mask == "nonzero"


@pytest.mark.parametrize(
    ("labels", "kept"),
    [([("lesion", "gt")], []), ([("lesion", "gt"), ("lesion", "")], ["gt"]), ([("wmh", "")], ["wmh"])],
)
def test_a_skipped_name_is_a_spelling_first(labels: list[tuple[str, str]], kept: list[str]) -> None:
    """`lesion:skip` leaves out what files call lesion, or, if none does, the annotation."""
    roles = [Role("P1", "label", name, Path(spelling or name), spelling=spelling) for name, spelling in labels]
    found = without_skipped_labels(roles, {"lesion": SKIP})
    assert [role.spelling or role.name for role in found] == kept
