"""The layout of last resort: what names and codes say is taken, what they do not is asked for."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

from multiseg.errors import LabelError, SourceError

SEVEN = ("cortical grey matter", "basal ganglia", "white matter", "lesion", "ventricles", "cerebellum", "brainstem")
DLMUSE = (4, 23, 35, 38, 51, 57, 81, 95, 100, 207, 1, 11)
NEUROMORPHOMETRICS = (4, 11, 23, 30, 31, 32, 35, 36, 37, 38, 39, 40, 41, 44, 45, 46, 47, 48, *range(100, 110),
                      *range(112, 120))  # fmt: skip


def write_case(head, folder: Path, prefix: str = "", **labels: np.ndarray) -> None:
    for name in ("T1", "FLAIR"):
        head.save(folder / f"{prefix}{name}.nii.gz")
    for name, array in labels.items():
        head.save(folder / f"{prefix}{name}.nii.gz", array)


def write_cases(head, folder: Path, **labels: np.ndarray) -> Path:
    for case in ("pat1", "pat2"):
        write_case(head, folder / case, **labels)
    return folder


def test_a_folder_a_case(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write_cases(head, tmp_path / "ms", lesion=head.codes(1), brainmask=head.brain.astype(np.uint8)))
    assert done.code == 0
    assert "(plain): 2 cases such as pat1, with FLAIR, T1 and labels lesion" in done.said
    assert done.codes() == []
    database = done.store["ms"]
    assert [(case.name, case.modalities) for case in database.cases] == [
        ("pat1", ("FLAIR", "T1")),
        ("pat2", ("FLAIR", "T1")),
    ]
    assert database.schemas["lesion"].names == ("lesion",)
    assert database.recipe.brain_mask == "file"
    assert database.cases[0].foreground_count[0][0] == 8


@pytest.mark.parametrize(
    ("place", "case"),
    [
        ("{case}/{case}_{name}", "pat1"),
        ("data/{case}/anat/{name}", "pat1"),
        ("{case}_{name}", "pat1"),
        ("{case}/sub-{case}x_{name}", "pat1"),
    ],
)
def test_where_files_lie(head, tmp_path: Path, place: str, case: str) -> None:
    for patient in ("pat1", "pat2"):
        for name, array in {"T1": None, "T2_FLAIR": None, "seg": head.codes(1)}.items():
            head.save(tmp_path / "ms" / (place.format(case=patient, name=name) + ".nii.gz"), array)
    found = look(tmp_path / "ms")
    assert found.errors == []
    assert found.modalities == {"pat1": ("FLAIR", "T1"), "pat2": ("FLAIR", "T1")}
    assert found.annotations == {"pat1": ["seg"], "pat2": ["seg"]}
    assert list(found.schemas) == ["seg"]


def test_images_and_labels_in_folders_of_the_case(head, tmp_path: Path) -> None:
    for patient in ("pat1", "pat2"):
        head.save(tmp_path / "ms" / patient / "images" / "T1.nii.gz")
        head.save(tmp_path / "ms" / patient / "labels" / "lesion.nii.gz", head.codes(1))
    found = look(tmp_path / "ms")
    assert (list(found.cases), found.errors) == (["pat1", "pat2"], [])


def test_the_folder_of_one_case(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "pat1", lesion=head.codes(1))
    found = look(tmp_path / "pat1")
    assert (found.modalities, found.errors) == ({"pat1": ("FLAIR", "T1")}, [])


def test_visits(head, tmp_path: Path) -> None:
    for patient, visit in (("ann", "ses-1"), ("ann", "ses-2"), ("bob", "ses-1")):
        write_case(head, tmp_path / "ms" / patient / visit, lesion=head.codes(1))
    found = look(tmp_path / "ms")
    cases = [(case.case, case.subject, case.session) for case in found.files.cases]
    assert cases == [("ann_ses-1", "ann", "ses-1"), ("ann_ses-2", "ann", "ses-2"), ("bob_ses-1", "bob", "ses-1")]
    assert found.codes() == []


def test_folders_that_may_be_sites_or_people(head, tmp_path: Path) -> None:
    for place in ("x/a", "x/b", "y/a"):
        write_case(head, tmp_path / "ms" / place, lesion=head.codes(1))
    found = look(tmp_path / "ms")
    assert list(found.cases) == ["x_a", "x_b", "y_a"]
    assert found.codes("warning") == ["NESTED_CASES"]


@pytest.mark.slow
def test_codes_are_asked_for(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "glioma", seg=head.codes(1, 2, 4))
    done = ingested(folder)
    assert done.code == 3
    assert "pat1/seg.nii.gz has the codes 1, 2, 4." in done.said
    assert '--labels "seg:1=NAME,2=NAME,4=NAME"' in done.said
    assert not done.url.exists()
    done = ingested(folder, "--labels", "seg:1=necrosis,2=oedema,4=enhancing")
    assert done.code == 0
    assert done.store["glioma"].schemas["seg"].names == ("necrosis", "oedema", "enhancing")
    assert {s.kind for s in done.store["glioma"].schemas["seg"].structures} == {"lesion"}


@pytest.mark.slow
def test_an_atlas_by_its_name(head, tmp_path: Path, ingested: Callable) -> None:
    labels = {"tissue_dlmuse_on_T1": head.codes(*DLMUSE), "lesion_on_FLAIR": head.codes(1)}
    done = ingested(write_cases(head, tmp_path / "wmh", **labels))
    assert done.code == 0
    database = done.store["wmh"]
    assert database.schemas["tissue"].names == SEVEN
    assert database.schemas["lesion"].names == ("lesion",)
    assert all(case.annotated.all() for case in database.cases)
    note = next(f["message"] for f in done.report["findings"] if f["code"] == "ATLAS")
    assert "atlas 'dlmuse'" in note
    assert "name says so" in note


@pytest.mark.slow
def test_an_atlas_by_its_codes(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write_cases(head, tmp_path / "oasis", parcellation=head.codes(*NEUROMORPHOMETRICS)))
    assert done.code == 0
    counts = dict(zip(SEVEN, done.store["oasis"].cases[0].foreground_count[0], strict=True))
    assert counts == {
        "cortical grey matter": 18 * 8, "basal ganglia": 8 * 8, "white matter": 16, "lesion": 0, "ventricles": 8,
        "cerebellum": 4 * 8, "brainstem": 8,
    }  # fmt: skip
    assert "neuromorphometrics" in next(f["message"] for f in done.report["findings"] if f["code"] == "ATLAS")


@pytest.mark.parametrize(
    ("name", "codes", "said"),
    [
        ("parcellation", (4, 11, 23), "has the codes 4, 11, 23."),  # too few to tell whose they are
        ("tissue", (1,), '--labels "tissue:1=NAME"'),
        ("dlmuse", (4, 11, 250), "which are not all in the atlas dlmuse"),
        ("parcellation", range(1, 40), "--labels tissue:ATLAS (freesurfer, neuromorphometrics, dlmuse)"),
    ],
)
def test_tissues_are_not_guessed(head, tmp_path: Path, name: str, codes, said: str) -> None:
    with pytest.raises(LabelError, match=re.escape(said)):
        look(write_cases(head, tmp_path / "brains", **{name: head.codes(*codes)}))


def test_an_atlas_as_the_user_says(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "brains", parcellation=head.codes(4, 11, 23))
    found = look(folder, codes={"tissue": "freesurfer,23=ignore"})
    assert (list(found.cases), found.errors) == (["pat1", "pat2"], [])
    assert found.files.schemas["tissue"].ignore_codes == (23,)


def test_two_tissue_annotations(head, tmp_path: Path) -> None:
    labels = {"parcellation": head.codes(*NEUROMORPHOMETRICS), "tissue3": head.codes(1, 2, 3)}
    folder = write_cases(head, tmp_path / "oasis", **labels)
    with pytest.raises(LabelError):
        look(folder)
    found = look(folder, codes={"tissue3": "1=CSF,2=grey matter,3=white matter"})
    assert (len(found.cases), found.errors) == (2, [])
    assert found.schemas["tissue3"] == ("CSF", "grey matter", "white matter")
    assert {s.kind for schema in found.files.schemas.values() for s in schema.structures} == {"tissue"}
    assert set(look(folder, codes={"tissue3": "skip"}).schemas) == {"tissue"}


def test_two_files_of_one_annotation(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), consensus=head.codes(1))
    found = look(folder)
    assert (found.cases, {code for code, _ in found.errors}) == ({}, {"DUPLICATE_CASE"})
    said = found.files.findings[0].message
    assert "pat1/consensus.nii.gz, pat1/lesion.nii.gz may each be the label of case 'pat1'" in said
    assert "--labels consensus:skip or --labels lesion:skip" in said
    chosen = look(folder, modalities={"consensus": "skip"})
    assert (len(chosen.cases), chosen.errors) == (2, [])
    assert set(look(folder, codes={"consensus": "1=lesion"}).schemas) == {"consensus", "lesion"}


def test_raters(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion_rater1=head.codes(1), lesion_rater2=head.codes(1))
    assert set(look(folder).schemas) == {"rater1", "rater2"}
    assert set(look(folder, raters="rater2").schemas) == {"rater2"}
    assert set(look(folder, raters="majority").schemas) == {"lesion"}


def test_a_mask_of_the_brain_is_no_lesion(head, tmp_path: Path) -> None:
    found = look(write_cases(head, tmp_path / "ms", mask=head.brain.astype(np.uint8)))
    assert (found.cases, found.errors) == ({}, [("LABEL_SIZE", "pat1"), ("LABEL_SIZE", "pat2")])
    assert "that is a brain, not a lesion" in found.messages("LABEL_SIZE")[0]


def test_what_is_unclear_is_left_out_and_said(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), T1_mask=head.codes(1), MTR=head.image())
    found = look(folder)
    assert found.errors == []
    assert found.modalities == {"pat1": ("FLAIR", "T1"), "pat2": ("FLAIR", "T1")}
    unknown = found.messages("UNKNOWN_SEQUENCE")
    assert len(unknown) == 2
    assert unknown[0].startswith("'MTR' is not a known sequence")
    named = look(folder, modalities={"MTR": "MTR", "T1_mask": "skip"})
    assert set(named.modalities.values()) == {("FLAIR", "T1", "MTR")}


def test_maps_of_one_tissue(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), gm=head.image(), wm_probseg=head.image())
    found = look(folder)
    assert (len(found.cases), found.codes()) == (2, ["ONE_TISSUE"])
    assert list(found.schemas) == ["lesion"]


def test_a_sequence_twice(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), T1_brain=head.image())
    found = look(folder)
    assert (found.cases, {code for code, _ in found.errors}) == ({}, {"DUPLICATE_CASE"})
    chosen = look(folder, modalities={"T1_brain": "skip"})
    assert (len(chosen.cases), chosen.errors) == (2, [])


def test_participants_are_offered(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1))
    (folder / "participants.csv").write_text("id,age\npat1,40\nPat2,50\n")
    found = look(folder)
    assert found.codes() == ["PARTICIPANTS_TABLE"]
    assert dict(found.cases["pat1"].participant) == {}
    found = look(folder, participants="participants.csv")
    assert found.cases["pat1"].participant["age"] == 40
    assert found.codes() == ["PARTICIPANTS", "PARTICIPANTS"]  # Pat2 is no case, pat2 has no row


def test_no_labels(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "native")
    assert look(folder).cases == {}
    assert look(folder).errors == [("MISSING_FILE", "pat1"), ("MISSING_FILE", "pat2")]
    found = look(folder, allow_unlabelled=True)
    assert (len(found.cases), found.errors) == (2, [])


def test_a_case_without_label_or_sequence(head, tmp_path: Path) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1))
    write_case(head, folder / "pat3")
    head.save(folder / "pat4" / "lesion.nii.gz", head.codes(1))
    found = look(folder)
    assert sorted(found.errors) == [("MISSING_FILE", "pat3"), ("NO_MODALITY", "pat4")]
    assert list(found.cases) == ["pat1", "pat2"]


def rows_of_the_docs() -> list[tuple[str, str, str]]:
    """File, what it is taken for, and why, from the table of names in docs/ingest.md."""
    text = (Path(__file__).parents[3] / "docs" / "ingest.md").read_text(encoding="utf-8")
    return re.findall(r"\| `(\S+)\.nii\.gz` \| ([^|]+) \| ([^|]+) \|", text)


def test_a_mixed_folder_is_read_as_the_docs_say(head, tmp_path: Path) -> None:
    rows = rows_of_the_docs()
    labels = {"lesion": head.codes(1), "brain_mask": head.brain.astype(np.uint8)}
    for name, _, _ in rows:
        head.save(tmp_path / "ward" / "pat1" / f"{name}.nii.gz", labels.get(name))
    found = look(tmp_path / "ward")
    assert found.errors == []
    images = found.cases["pat1"].images
    told = {f"{name}.nii.gz": sequence for name, sequence, _ in rows if sequence in images}
    assert {path.name: sequence for sequence, path in images.items()} == told
    assert len(told) == 9
    assert (list(found.schemas), found.files.brain_mask) == (["lesion"], "file")
    asked = found.messages("UNKNOWN_SEQUENCE")
    open_rows = [(name, why) for name, meaning, why in rows if meaning in ("left out", "asked") and name != "gm_prob"]
    assert len(asked) == len(open_rows) == 11
    for name, why in open_rows:
        message = next(message for message in asked if message.startswith(f"{name!r} "))
        assert f"({why})" in message
        assert f"--modality {name}=T1" in message
    assert "gm_prob" in found.messages("ONE_TISSUE")[0]


def test_what_a_name_leaves_open_goes_in_as_the_user_says(head, tmp_path: Path) -> None:
    for case in ("pat1", "pat2"):
        head.save(tmp_path / "ms" / case / f"{case}_mprage_FAST.nii.gz")
        head.save(tmp_path / "ms" / case / f"{case}_lesion.nii.gz", head.codes(1))
    found = look(tmp_path / "ms")
    assert (found.cases, {code for code, _ in found.errors}) == ({}, {"NO_MODALITY"})
    assert "names that do not say which sequence they are: mprage_FAST" in found.evidence
    assert look(tmp_path / "ms", modalities={"mprage_FAST": "T1"}).modalities == {"pat1": ("T1",), "pat2": ("T1",)}


@pytest.mark.parametrize("place", ["{case}_{name}", "{case}/{case}_{name}", "{case}/{name}"])
def test_contrast_is_read_wherever_it_stands(head, tmp_path: Path, place: str) -> None:
    for case in ("pat1", "pat2"):
        for name in ("post_T1", "post_FLAIR", "T1_abc", "lesion"):
            path = tmp_path / "ms" / f"{place.format(case=case, name=name)}.nii.gz"
            head.save(path, head.codes(1) if name == "lesion" else None)
    found = look(tmp_path / "ms")
    assert found.modalities == {"pat1": ("FLAIR", "T1c"), "pat2": ("FLAIR", "T1c")}
    assert found.codes() == ["UNKNOWN_SEQUENCE"]
    both = look(tmp_path / "ms", modalities={"T1_abc": "T1"})
    assert set(both.modalities.values()) == {("FLAIR", "T1", "T1c")}


def test_a_folder_that_may_say_with_contrast(head, tmp_path: Path) -> None:
    for case in ("ann_pre", "ann_post", "bob_pre"):
        head.save(tmp_path / "ms" / case / "T1.nii.gz")
    found = look(tmp_path / "ms", allow_unlabelled=True)
    assert found.errors == [("AMBIGUOUS_NAME", "ann_post")]
    said = found.messages("AMBIGUOUS_NAME")
    assert len(said) == 1
    assert "ends in 'post', so its T1 may be T1c" in said[0]
    named = look(tmp_path / "ms", allow_unlabelled=True, modalities={"T1": "T1"})
    assert (len(named.cases), named.errors) == (3, [])


@pytest.mark.slow
def test_a_pattern_reads_words_and_leaves_none_of_them_to_the_case(head, tmp_path: Path, ingested: Callable) -> None:
    for name in ("pat1_t1_mprage_KM", "pat1_TOF"):
        head.save(tmp_path / "ms" / "a" / f"{name}.nii.gz")
    done = ingested(tmp_path / "ms", "--pattern", "a/{case}_{modality}.nii.gz", "--allow-unlabelled")
    assert done.code != 0
    done = ingested(tmp_path / "ms", "--pattern", "{case}/pat1_{modality}.nii.gz", "--allow-unlabelled")
    assert (done.code, done.store["ms"].modalities, done.codes("warning")) == (0, ("T1c",), ["UNKNOWN_SEQUENCE"])


@pytest.mark.parametrize("names", [["T1/pat1", "T1/pat2", "FLAIR/pat1"], ["pat1_T1_1", "pat2_T1_1"], ["a", "b"]])
def test_folders_that_are_not_plain(head, tmp_path: Path, names: list[str]) -> None:
    for name in names:
        head.save(tmp_path / "ms" / f"{name}.nii.gz")
    with pytest.raises(SourceError, match="multiseg does not recognise the layout of"):
        look(tmp_path / "ms", allow_unlabelled=True)


def test_real_folders(data: Path, tmp_path: Path, ingested: Callable) -> None:
    for name in ("Subj01", "Subj02"):
        shutil.copytree(data / "wmh" / name, tmp_path / "wmh" / name)
    done = ingested(tmp_path / "wmh")
    assert done.code == 0
    database = done.store["wmh"]
    assert database.schemas["tissue"].names == SEVEN
    assert all(case.annotated.all() for case in database.cases)
    ml = database.cases[0].foreground_count[list(database.schemas).index("tissue")] * 6.0**3 / 1000
    by_name = dict(zip(SEVEN, ml, strict=True))
    assert 380 < by_name["cortical grey matter"] < 560
    assert 400 < by_name["white matter"] < 600
    assert 110 < by_name["cerebellum"] < 170
