"""The layout of last resort: what names and codes say is taken, what they do not is asked for."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
def test_where_files_lie(head, tmp_path: Path, ingested: Callable, place: str, case: str) -> None:
    for patient in ("pat1", "pat2"):
        for name, array in {"T1": None, "T2_FLAIR": None, "seg": head.codes(1)}.items():
            head.save(tmp_path / "ms" / (place.format(case=patient, name=name) + ".nii.gz"), array)
    done = ingested(tmp_path / "ms")
    assert done.code == 0
    assert [c.name for c in done.store["ms"].cases] == ["pat1", "pat2"]
    assert done.store["ms"].modalities == ("FLAIR", "T1")
    assert tuple(done.store["ms"].schemas) == ("seg",)


def test_images_and_labels_in_folders_of_the_case(head, tmp_path: Path, ingested: Callable) -> None:
    for patient in ("pat1", "pat2"):
        head.save(tmp_path / "ms" / patient / "images" / "T1.nii.gz")
        head.save(tmp_path / "ms" / patient / "labels" / "lesion.nii.gz", head.codes(1))
    done = ingested(tmp_path / "ms")
    assert done.code == 0
    assert [case.name for case in done.store["ms"].cases] == ["pat1", "pat2"]


def test_the_folder_of_one_case(head, tmp_path: Path, ingested: Callable) -> None:
    write_case(head, tmp_path / "pat1", lesion=head.codes(1))
    done = ingested(tmp_path / "pat1", "--database", "one")
    assert done.code == 0
    assert [(c.name, c.modalities) for c in done.store["one"].cases] == [("pat1", ("FLAIR", "T1"))]


def test_visits(head, tmp_path: Path, ingested: Callable) -> None:
    for patient, visit in (("ann", "ses-1"), ("ann", "ses-2"), ("bob", "ses-1")):
        write_case(head, tmp_path / "ms" / patient / visit, lesion=head.codes(1))
    done = ingested(tmp_path / "ms")
    cases = [(case.name, case.subject, case.session) for case in done.store["ms"].cases]
    assert cases == [("ann_ses-1", "ann", "ses-1"), ("ann_ses-2", "ann", "ses-2"), ("bob_ses-1", "bob", "ses-1")]
    assert done.codes() == []


def test_folders_that_may_be_sites_or_people(head, tmp_path: Path, ingested: Callable) -> None:
    for place in ("x/a", "x/b", "y/a"):
        write_case(head, tmp_path / "ms" / place, lesion=head.codes(1))
    done = ingested(tmp_path / "ms")
    assert [case.name for case in done.store["ms"].cases] == ["x_a", "x_b", "y_a"]
    assert done.codes("warning") == ["NESTED_CASES"]


def test_codes_are_asked_for(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "glioma", seg=head.codes(1, 2, 4))
    done = ingested(folder)
    assert done.code == 3
    assert "pat1/seg.nii.gz holds the codes 1, 2, 4." in done.said
    assert '--labels "seg:1=NAME,2=NAME,4=NAME"' in done.said
    assert not done.url.exists()
    done = ingested(folder, "--labels", "seg:1=necrosis,2=oedema,4=enhancing")
    assert done.code == 0
    assert done.store["glioma"].schemas["seg"].names == ("necrosis", "oedema", "enhancing")
    assert {s.kind for s in done.store["glioma"].schemas["seg"].structures} == {"lesion"}


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
        ("parcellation", (4, 11, 23), "holds the codes 4, 11, 23."),  # too few to tell whose they are
        ("tissue", (1,), '--labels "tissue:1=NAME"'),
        ("dlmuse", (4, 11, 250), "which dlmuse does not all know"),
        ("parcellation", range(1, 40), "--labels tissue:ATLAS (freesurfer, neuromorphometrics, dlmuse)"),
    ],
)
def test_tissues_are_not_guessed(head, tmp_path: Path, ingested: Callable, name: str, codes, said: str) -> None:
    done = ingested(write_cases(head, tmp_path / "brains", **{name: head.codes(*codes)}))
    assert done.code == 3
    assert said in done.said


def test_an_atlas_as_the_user_says(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "brains", parcellation=head.codes(4, 11, 23))
    done = ingested(folder, "--labels", "tissue:freesurfer,23=ignore")
    assert done.code == 0
    assert done.store["brains"].schemas["tissue"].ignore_codes == (23,)


def test_two_tissue_annotations(head, tmp_path: Path, ingested: Callable) -> None:
    labels = {"parcellation": head.codes(*NEUROMORPHOMETRICS), "tissue3": head.codes(1, 2, 3)}
    folder = write_cases(head, tmp_path / "oasis", **labels)
    assert ingested(folder).code == 3
    done = ingested(folder, "--labels", "tissue3:1=CSF,2=grey matter,3=white matter")
    assert done.code == 0
    schemas = done.store["oasis"].schemas
    assert schemas["tissue3"].names == ("CSF", "grey matter", "white matter")
    assert {s.kind for schema in schemas.values() for s in schema.structures} == {"tissue"}
    assert set(ingested(folder, "--labels", "tissue3:skip").store["oasis"].schemas) == {"tissue"}


def test_two_files_of_one_annotation(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), consensus=head.codes(1))
    done = ingested(folder)
    assert (done.code, set(done.codes("error"))) == (3, {"DUPLICATE_CASE"})
    said = done.report["findings"][0]["message"]
    assert "pat1/consensus.nii.gz, pat1/lesion.nii.gz may each be the label of case 'pat1'" in said
    assert "--labels consensus:skip or --labels lesion:skip" in said
    assert ingested(folder, "--modality", "consensus=skip").code == 0
    both = ingested(folder, "--labels", "consensus:1=lesion")
    assert set(both.store["ms"].schemas) == {"consensus", "lesion"}


def test_raters(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion_rater1=head.codes(1), lesion_rater2=head.codes(1))
    assert set(ingested(folder).store["ms"].schemas) == {"rater1", "rater2"}
    assert set(ingested(folder, "--raters", "rater2").store["ms"].schemas) == {"rater2"}
    assert set(ingested(folder, "--raters", "majority").store["ms"].schemas) == {"lesion"}


def test_a_mask_of_the_brain_is_no_lesion(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write_cases(head, tmp_path / "ms", mask=head.brain.astype(np.uint8)))
    assert (done.code, done.codes("error")) == (3, ["LABEL_SIZE", "LABEL_SIZE"])
    assert "that is a brain, not a lesion" in done.report["findings"][0]["message"]


def test_what_is_unclear_is_left_out_and_said(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), T1_mask=head.codes(1), MTR=head.image())
    done = ingested(folder)
    assert done.code == 0
    assert done.store["ms"].modalities == ("FLAIR", "T1")
    unknown = [f["message"] for f in done.report["findings"] if f["code"] == "UNKNOWN_SEQUENCE"]
    assert len(unknown) == 2
    assert unknown[0].startswith("'MTR' is no known sequence")
    assert ingested(folder, "--modality", "MTR=MTR", "--modality", "T1_mask=skip").store["ms"].modalities[-1] == "MTR"


def test_maps_of_one_tissue(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), gm=head.image(), wm_probseg=head.image())
    done = ingested(folder)
    assert (done.code, done.codes()) == (0, ["ONE_TISSUE"])
    assert tuple(done.store["ms"].schemas) == ("lesion",)


def test_a_sequence_twice(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1), T1_brain=head.image())
    done = ingested(folder)
    assert (done.code, set(done.codes("error"))) == (3, {"DUPLICATE_CASE"})
    assert ingested(folder, "--modality", "T1_brain=skip").code == 0


def test_participants_are_offered(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1))
    (folder / "participants.csv").write_text("id,age\npat1,40\nPat2,50\n")
    done = ingested(folder)
    assert done.codes() == ["PARTICIPANTS_TABLE"]
    assert dict(done.store["ms"].cases[0].participant) == {}
    done = ingested(folder, "--participants", "participants.csv")
    assert done.store["ms"].cases[0].participant["age"] == 40
    assert done.codes() == ["PARTICIPANTS", "PARTICIPANTS"]  # Pat2 is no case, pat2 has no row


def test_no_labels(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "native")
    assert (ingested(folder).code, ingested(folder, "--allow-unlabelled").code) == (3, 0)


def test_a_case_without_label_or_sequence(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", lesion=head.codes(1))
    write_case(head, folder / "pat3")
    head.save(folder / "pat4" / "lesion.nii.gz", head.codes(1))
    done = ingested(folder)
    assert (done.code, sorted(done.report["failed"])) == (4, ["pat3", "pat4"])
    assert sorted(done.codes("error")) == ["MISSING_FILE", "NO_MODALITY"]


def rows_of_the_docs() -> list[tuple[str, str, str]]:
    """File, what it is taken for, and why, from the table of names in docs/ingest.md."""
    text = (Path(__file__).parents[3] / "docs" / "ingest.md").read_text(encoding="utf-8")
    return re.findall(r"\| `(\S+)\.nii\.gz` \| ([^|]+) \| ([^|]+) \|", text)


def test_a_mixed_folder_is_read_as_the_docs_say(head, tmp_path: Path, ingested: Callable) -> None:
    rows = rows_of_the_docs()
    labels = {"lesion": head.codes(1), "brain_mask": head.brain.astype(np.uint8)}
    for name, _, _ in rows:
        head.save(tmp_path / "ward" / "pat1" / f"{name}.nii.gz", labels.get(name))
    done = ingested(tmp_path / "ward")
    assert done.code == 0
    database = done.store["ward"]
    sources = {Path(source["file"]).name: source["role"] for source in database.sources(database.cases[0])}
    files = {file: role for file, role in sources.items() if role in database.modalities}
    told = {f"{name}.nii.gz": sequence for name, sequence, _ in rows if sequence in database.modalities}
    assert files == told
    assert len(told) == 9
    assert (tuple(database.schemas), database.recipe.brain_mask) == (("lesion",), "file")
    asked = [f["message"] for f in done.report["findings"] if f["code"] == "UNKNOWN_SEQUENCE"]
    open_rows = [(name, why) for name, meaning, why in rows if meaning in ("left out", "asked") and name != "gm_prob"]
    assert len(asked) == len(open_rows) == 11
    for name, why in open_rows:
        message = next(message for message in asked if message.startswith(f"{name!r} "))
        assert f"({why})" in message
        assert f"--modality {name}=T1" in message
    assert "gm_prob" in next(f["message"] for f in done.report["findings"] if f["code"] == "ONE_TISSUE")


def test_what_a_name_leaves_open_goes_in_as_the_user_says(head, tmp_path: Path, ingested: Callable) -> None:
    for case in ("pat1", "pat2"):
        head.save(tmp_path / "ms" / case / f"{case}_mprage_FAST.nii.gz")
        head.save(tmp_path / "ms" / case / f"{case}_lesion.nii.gz", head.codes(1))
    done = ingested(tmp_path / "ms")
    assert (done.code, set(done.codes("error"))) == (3, {"NO_MODALITY"})
    assert "names that leave open which sequence they are: mprage_FAST" in done.said
    assert ingested(tmp_path / "ms", "--modality", "mprage_FAST=T1").store["ms"].modalities == ("T1",)


@pytest.mark.parametrize("place", ["{case}_{name}", "{case}/{case}_{name}", "{case}/{name}"])
def test_contrast_is_read_wherever_it_stands(head, tmp_path: Path, ingested: Callable, place: str) -> None:
    for case in ("pat1", "pat2"):
        for name in ("post_T1", "post_FLAIR", "T1_abc", "lesion"):
            path = tmp_path / "ms" / f"{place.format(case=case, name=name)}.nii.gz"
            head.save(path, head.codes(1) if name == "lesion" else None)
    done = ingested(tmp_path / "ms")
    assert done.code == 0
    assert [(case.name, case.modalities) for case in done.store["ms"].cases] == [
        ("pat1", ("FLAIR", "T1c")),
        ("pat2", ("FLAIR", "T1c")),
    ]
    assert done.codes() == ["UNKNOWN_SEQUENCE"]
    both = ingested(tmp_path / "ms", "--modality", "T1_abc=T1")
    assert both.store["ms"].modalities == ("FLAIR", "T1", "T1c")


def test_a_folder_that_may_say_with_contrast(head, tmp_path: Path, ingested: Callable) -> None:
    for case in ("ann_pre", "ann_post", "bob_pre"):
        head.save(tmp_path / "ms" / case / "T1.nii.gz")
    done = ingested(tmp_path / "ms", "--allow-unlabelled")
    assert (done.code, done.report["failed"]) == (4, ["ann_post"])
    said = [f["message"] for f in done.report["findings"] if f["code"] == "AMBIGUOUS_NAME"]
    assert len(said) == 1
    assert "ends in 'post', which may say that its T1 is T1c" in said[0]
    assert ingested(tmp_path / "ms", "--allow-unlabelled", "--modality", "T1=T1").code == 0


def test_a_pattern_reads_words_and_leaves_none_of_them_to_the_case(head, tmp_path: Path, ingested: Callable) -> None:
    for name in ("pat1_t1_mprage_KM", "pat1_TOF"):
        head.save(tmp_path / "ms" / "a" / f"{name}.nii.gz")
    done = ingested(tmp_path / "ms", "--pattern", "a/{case}_{modality}.nii.gz", "--allow-unlabelled")
    assert done.code != 0
    done = ingested(tmp_path / "ms", "--pattern", "{case}/pat1_{modality}.nii.gz", "--allow-unlabelled")
    assert (done.code, done.store["ms"].modalities, done.codes("warning")) == (0, ("T1c",), ["UNKNOWN_SEQUENCE"])


@pytest.mark.parametrize("names", [["T1/pat1", "T1/pat2", "FLAIR/pat1"], ["pat1_T1_1", "pat2_T1_1"], ["a", "b"]])
def test_folders_that_are_not_plain(head, tmp_path: Path, ingested: Callable, names: list[str]) -> None:
    for name in names:
        head.save(tmp_path / "ms" / f"{name}.nii.gz")
    done = ingested(tmp_path / "ms", "--allow-unlabelled")
    assert done.code == 3
    assert "is in no layout that multiseg knows" in done.said


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
