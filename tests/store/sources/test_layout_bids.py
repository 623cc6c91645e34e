"""BIDS: names, sessions, derivatives, and everything that must be said and not chosen."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

from multiseg.errors import SourceError
from multiseg.store.sources.bids_names import bids_file, named_by, sequence_of, unnamed_spelling

CONTRAST = "ce-gadolinium_T1w"


def save(head, root: Path, name: str, array=None, above: str = "", datatype: str = "anat", affine=None) -> Path:
    """One file in the folder that its name says."""
    entities = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    return head.save(root / above / Path(*entities) / datatype / f"{name}.nii.gz", array, affine)


@pytest.fixture
def root(head, tmp_path: Path) -> Path:
    """Two people, the second with two visits; lesion masks in derivatives."""
    root = tmp_path / "clinic"
    for stem in ("sub-01", "sub-02_ses-1", "sub-02_ses-2"):
        for name in ("T1w", CONTRAST, "T2w", "FLAIR"):
            save(head, root, f"{stem}_{name}")
        save(head, root, f"{stem}_label-lesion_mask", head.codes(1), "derivatives/manual")
    description = {"Name": "Clinic", "BIDSVersion": "1.9.0", "License": "CC0", "DatasetDOI": "doi:10.1/x"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "participants.tsv").write_text("participant_id\tage\tsex\tsite\nsub-01\t61\tF\t1\nsub-02\tn/a\tM\t2\n")
    return root


def errors(done) -> list[tuple[str, str]]:
    return [(f["code"], f["case"]) for f in done.report["findings"] if f["severity"] == "error"]


def test_raw_and_derivatives(root: Path, ingested: Callable) -> None:
    done = ingested(root)
    assert done.code == 0, done.said
    assert "clinic is BIDS (bids): 2 subjects" in done.said
    assert "could also be" not in done.said
    database = done.store["clinic"]
    assert [case.name for case in database.cases] == ["sub-01", "sub-02_ses-1", "sub-02_ses-2"]
    assert [case.subject for case in database.cases] == ["sub-01", "sub-02", "sub-02"]
    assert [case.session for case in database.cases] == ["", "ses-1", "ses-2"]
    assert {case.modalities for case in database.cases} == {("FLAIR", "T1", "T1c", "T2")}
    assert {name: schema.names for name, schema in database.schemas.items()} == {"lesion": ("lesion",)}
    assert all(case.foreground_count.tolist() == [[8]] for case in database.cases)
    first, second, third = database.cases
    assert second.split == third.split
    assert (first.site, first.participant["sex"], first.participant["age"]) == ("1", "F", 61.0)
    assert np.isnan(second.participant["age"])
    assert database.attributes["licence"] == "CC0"
    assert "doi:10.1/x" in database.attributes["source"]


def test_other_participants(root: Path) -> None:
    (root / "mine.csv").write_text("who,grade\nsub-01,2\nsub-02,4\n")
    found = look(root, participants="mine.csv")
    assert dict(found.cases["sub-01"].participant) == {"grade": 2.0}


def test_columns_that_the_store_has_already(root: Path) -> None:
    (root / "participants.tsv").write_text("participant_id\tstatus\tage\tsplit\nsub-01\tx\t3\tA\nsub-02\ty\t4\tB\n")
    found = look(root)
    assert (len(found.cases), found.errors) == (3, [])
    assert dict(found.cases["sub-01"].participant) == {"age": 3.0}
    assert "the columns split, status are left out" in found.messages("PARTICIPANTS")[0]


def test_a_person_in_two_rows(root: Path) -> None:
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t3\nsub-01\t4\nsub-02\t4\n")
    found = look(root)
    assert (found.errors, found.codes("warning").count("PARTICIPANTS")) == ([], 1)
    assert "age" not in found.cases["sub-01"].participant


def test_rows_by_session(root: Path) -> None:
    (root / "participants.tsv").write_text(
        "participant_id\tsession_id\tage\nsub-01\tn/a\t3\nsub-02\tses-1\t4\nsub-02\tses-2\t5\n"
    )
    assert [case.participant["age"] for case in look(root).files.cases] == [3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("spelling", "above"),
    [
        ("label-L_mask", "derivatives/labels"),
        ("label-lesion_mask", ""),
        ("label-lesion_roi", "derivatives/labels"),
        ("T2w_lesion-manual", "derivatives/labels"),
        ("label-lesion_seg", "derivatives/labels"),
        ("label-L_desc-T1lesion_mask", "derivatives/labels"),
        ("desc-T1lesion_mask", ""),
        ("desc-lesion_mask", "derivatives/labels"),
        ("msk", "derivatives"),
    ],
)
def test_spellings_of_lesion_masks(head, tmp_path: Path, spelling: str, above: str) -> None:
    root = tmp_path / "bids"
    save(head, root, "sub-a_T2w")
    save(head, root, f"sub-a_{spelling}", head.codes(1), above)
    found = look(root)
    assert found.errors == []
    assert found.names("sub-a") == {"T2": "sub-a_T2w.nii.gz", "label:lesion": f"sub-a_{spelling}.nii.gz"}
    assert found.schemas == {"lesion": ("lesion",)}


@pytest.mark.parametrize("name", ["label-lesion_desc-rater{}_seg", "lesion-manual-rater{}"])
def test_raters(head, root: Path, name: str) -> None:
    for rater in (1, 2):
        save(head, root, f"sub-01_{name.format(rater)}", head.codes(1), "derivatives/manual")
    assert list(look(root).schemas) == ["lesion"]
    found = look(root, raters="all")
    assert found.schemas == {"lesion": ("lesion",), "rater1": ("lesion",), "rater2": ("lesion",)}
    assert found.names("sub-01")["label:rater2"] == f"sub-01_{name.format(2)}.nii.gz"
    assert found.annotations["sub-01"] == ["lesion", "rater1", "rater2"]
    assert "SEVERAL_MASKS" not in found.codes()


def test_several_pipelines_are_several_annotations(head, root: Path) -> None:
    save(head, root, "sub-01_label-lesion_desc-auto_mask", head.codes(1), "derivatives/lst-ai")
    found = look(root)
    assert found.errors == []
    assert "SEVERAL_MASKS" in found.codes("warning")
    assert list(found.schemas) == ["lst-ai", "manual"]
    assert list(found.annotations.values()) == [["lst-ai", "manual"], ["manual"], ["manual"]]
    assert list(look(root, codes={"lst-ai": "skip"}).schemas) == ["manual"]


def test_one_pipeline_with_two_masks(head, root: Path) -> None:
    save(head, root, "sub-01_label-lesion_desc-auto_mask", head.codes(1), "derivatives/manual")
    found = look(root)
    assert found.annotations["sub-01"] == ["auto", "lesion"]
    assert list(found.schemas) == ["auto", "lesion"]


@pytest.mark.parametrize("name", ["acq-mp2rage_T1w", "run-2_T1w", "rec-norm_T1w"])
def test_two_scans_of_one_sequence_are_never_chosen_between(head, root: Path, name: str) -> None:
    save(head, root, f"sub-01_{name}")
    found = look(root)
    assert found.errors == [("DUPLICATE_SEQUENCE", "sub-01")]
    assert f"--modality T1w=T1 or --modality {name}=T1" in found.messages("DUPLICATE_SEQUENCE")[0]
    assert [case.subject for case in found.files.cases] == ["sub-02", "sub-02"]


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("acq-mp2rage_T1w=T1", "sub-01_acq-mp2rage_T1w.nii.gz"),
        ("acq-mp2rage_T1w=skip", "sub-01_T1w.nii.gz"),
        ("T1w=T1", "sub-01_T1w.nii.gz"),
        ("T1w=skip", ""),
    ],
)
def test_the_user_chooses_a_scan(head, root: Path, said: str, taken: str) -> None:
    save(head, root, "sub-01_acq-mp2rage_T1w")
    spelling, _, name = said.partition("=")
    found = look(root, modalities={spelling: name})
    assert found.errors == []
    files = found.names("sub-01")
    assert files.get("T1", "") == taken
    assert files["T1c"] == f"sub-01_{CONTRAST}.nii.gz"  # "T1w" never means the scan with contrast agent


@pytest.mark.parametrize("name", ["acq-postGd_T1w", "ce-gadolinium_FLAIR", "UNIT1", "acq-stir_T2w", "STIR_T2w"])
def test_what_a_name_does_not_tell_is_left_to_the_user(head, tmp_path: Path, name: str) -> None:
    save(head, tmp_path / "b", "sub-1_T2w")
    save(head, tmp_path / "b", f"sub-1_{name}")
    save(head, tmp_path / "b", "sub-1_label-lesion_mask", head.codes(1))
    found = look(tmp_path / "b")
    assert found.codes("warning") == ["UNKNOWN_SEQUENCE"]
    assert f"--modality {name}=T1" in found.messages("UNKNOWN_SEQUENCE")[0]
    assert found.modalities == {"sub-1": ("T2",)}
    assert look(tmp_path / "b", modalities={name: "T1c"}).modalities == {"sub-1": ("T1c", "T2")}


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("T1w", "T1"), ("ce-gadolinium_T1w", "T1c"), ("acq-mp2rage_T1w", "T1"), ("desc-preproc_T1w", "T1"),
        ("acq-64dir_dwi", "DWI"), ("post_T1w", "T1c"), ("T2_FLAIR", "FLAIR"), ("acq-KM_T1w", None),
        ("acq-spacepost_T1w", None), ("acq-DIR_FLAIR", None), ("rec-minIP_swi", None), ("desc-FA_dwi", None),
        ("acq-b50_dwi", None), ("acq-GRE_T2w", None), ("acq-FLAIR_T2w", None), ("T1_FLAIR", None),
    ],
)  # fmt: skip
def test_entities_and_words_that_say_more_than_the_suffix(name: str, sequence: str | None) -> None:
    file = bids_file(f"sub-1/anat/sub-1_{name}.nii.gz")
    assert file is not None
    assert sequence_of(file) == sequence
    assert named_by(file, {unnamed_spelling(file): "T1"}) is not None
    assert named_by(file, {"T1w": "T1"}) is None or name in ("T1w", "acq-mp2rage_T1w", "desc-preproc_T1w")


def test_stroke_sequences_and_what_is_beside_the_standard(head, tmp_path: Path) -> None:
    root = tmp_path / "b"
    for name in ("PDw", "T2starw", "flair"):
        save(head, root, f"sub-1_{name}")
    save(head, root, "sub-1_swi", datatype="swi")
    save(head, root, "sub-1_part-phase_swi", datatype="swi")
    for name in ("trace", "ADC"):
        save(head, root, f"sub-1_{name}", datatype="dwi")
    save(head, root, "sub-1_dwi", np.stack([head.image()] * 3, axis=-1), datatype="dwi")
    save(head, root, "sub-1_sbref", datatype="dwi")
    save(head, root, "sub-1_task-rest_bold", datatype="func")
    save(head, root, "sub-1_label-GM_probseg", head.image(), "derivatives/x")
    save(head, root, "sub-1_msk", head.codes(1), "derivatives/x")
    found = look(root)
    assert found.errors == []
    assert found.modalities == {"sub-1": ("PD", "FLAIR", "SWI", "DWI", "ADC", "T2star")}
    assert found.codes("warning") == ["DIFFUSION_SERIES"]
    notes = found.messages("LEFT_OUT")
    assert len(notes) == 4
    for word in ("sbref", "func/", "probseg", "part-phase"):
        assert any(word in note for note in notes)


@pytest.mark.parametrize(("weighting", "modalities"), [("0", ("FLAIR",)), ("1000", ("FLAIR", "DWI"))])
def test_a_single_diffusion_image(head, tmp_path: Path, weighting: str, modalities) -> None:
    save(head, tmp_path / "b", "sub-1_FLAIR")
    path = save(head, tmp_path / "b", "sub-1_dwi", datatype="dwi")
    path.with_name("sub-1_dwi.bval").write_text(f"{weighting}\n")
    save(head, tmp_path / "b", "sub-1_msk", head.codes(1))
    assert look(tmp_path / "b").modalities == {"sub-1": modalities}


@pytest.mark.slow
def test_segmentations_with_their_table(head, root: Path, ingested: Callable) -> None:
    for stem in ("sub-01", "sub-02_ses-1"):
        save(head, root, f"{stem}_desc-seven_dseg", head.codes(3, 10, 42), "derivatives/tool")
        save(head, root, f"{stem}_dseg", head.codes(1, 3), "derivatives/tool")
    table = "index\tname\n0\tUnknown\n3\tLeft Cerebral Cortex\n10\tThalamus\n42\tinfarct, old\n"
    (root / "derivatives" / "tool" / "desc-seven_dseg.tsv").write_text(table)
    done = ingested(root)
    assert done.code == 0, done.report
    database = done.store["clinic"]
    assert list(database.schemas) == ["lesion", "tissue", "tissue_seven"]
    seven = database.schemas["tissue_seven"]
    assert [(s.name, s.kind) for s in seven.structures] == [
        ("Left Cerebral Cortex", "tissue"), ("Thalamus", "tissue"), ("infarct  old", "lesion"),
    ]  # fmt: skip
    assert database.schemas["tissue"].names[:3] == ("grey matter", "white matter", "CSF")
    case = database["sub-01"]
    assert case.foreground_count[2, :3].tolist() == [8, 8, 8]
    assert database["sub-02_ses-2"].annotated.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("table", "word"),
    [("index\tname\nx\tGM\n", "whole number"), ("index\tname\n1\tGM\n1\tWM\n", "1 is")],
)
def test_a_table_that_cannot_be_used(head, root: Path, table: str, word: str) -> None:
    save(head, root, "sub-01_dseg", head.codes(1), "derivatives/tool")
    (root / "derivatives" / "tool" / "dseg.tsv").write_text(table)
    found = look(root)
    assert found.errors == []
    assert "LABEL_TABLE" in found.codes("warning")
    assert word in found.messages("LABEL_TABLE")[0]
    assert list(found.schemas) == ["lesion"]
    assert look(root, codes={"tissue": "1=tissue:grey matter"}).schemas["tissue"] == ("grey matter",)


def test_a_segmentation_without_the_lesion_mask_is_no_lesion_label(head, root: Path) -> None:
    save(head, root, "sub-01_dseg", head.codes(1), "derivatives/tool")
    next(root.glob("derivatives/manual/sub-01/anat/*")).unlink()
    assert look(root).errors == [("MISSING_FILE", "sub-01")]
    found = look(root, allow_unlabelled=True)
    assert (list(found.schemas), found.annotations["sub-01"]) == (["lesion", "tissue"], ["tissue"])


def test_masks_of_unknown_meaning(head, root: Path) -> None:
    save(head, root, "sub-01_label-WMH_mask", head.codes(1), "derivatives/manual")
    found = look(root)
    assert "UNKNOWN_MASK" in found.codes("warning")
    assert "WMH" not in found.schemas
    named = look(root, codes={"WMH": "1=WMH"})
    assert named.names("sub-01")["label:WMH"] == "sub-01_label-WMH_mask.nii.gz"
    assert named.annotations["sub-01"] == ["WMH", "lesion"]
    assert named.schemas["WMH"] == ("WMH",)


def test_a_sidecar_says_what_a_mask_is(head, root: Path) -> None:
    next(root.glob("derivatives/manual/sub-01/anat/*")).unlink()
    path = save(head, root, "sub-01_desc-mine_mask", head.codes(1), "derivatives/manual")
    path.with_name("sub-01_desc-mine_mask.json").write_text('{"Type": "Lesion"}')
    found = look(root)
    assert (len(found.cases), found.errors) == (3, [])
    assert list(found.schemas) == ["lesion"]


@pytest.mark.parametrize("name", ["desc-brain_mask", "label-brain_mask"])
def test_brain_masks(head, root: Path, name: str) -> None:
    for stem in ("sub-01", "sub-02_ses-1", "sub-02_ses-2"):
        save(head, root, f"{stem}_{name}", head.brain.astype(np.uint8), "derivatives/strip")
    found = look(root)
    assert (found.errors, found.files.brain_mask) == ([], "file")
    assert found.names("sub-01")["brain_mask"] == f"sub-01_{name}.nii.gz"
    save(head, root, f"sub-01_{name}", head.brain.astype(np.uint8), "derivatives/strip2")
    assert look(root).errors == [("DUPLICATE_BRAIN_MASK", "sub-01")]
    without = look(root, brain_mask="nonzero")
    assert (len(without.cases), without.errors) == (3, [])


def shifted(head) -> np.ndarray:
    affine = head.affine.copy()
    affine[:3, 3] += 9
    return affine


def test_labels_in_a_template_take_the_scans_there(head, root: Path) -> None:
    next(root.glob("derivatives/manual/sub-01/anat/*")).unlink()
    for name, array in (("space-MNI_desc-preproc_T1w", None), ("space-MNI_label-lesion_mask", head.codes(1))):
        save(head, root, f"sub-01_{name}", array, "derivatives/prep", affine=shifted(head))
    found = look(root)
    assert found.errors == []
    assert found.names("sub-01") == {
        "T1": "sub-01_space-MNI_desc-preproc_T1w.nii.gz",
        "label:lesion": "sub-01_space-MNI_label-lesion_mask.nii.gz",
    }
    assert found.codes("warning").count("SEQUENCE_LOST") == 1
    assert "RAW_OR_PREPROCESSED" in found.codes("note")
    assert found.modalities["sub-02_ses-1"] == ("FLAIR", "T1", "T1c", "T2")


def test_raw_scans_where_a_label_lies_with_them(head, root: Path) -> None:
    save(head, root, "sub-01_label-lesion_mask", head.codes(1)[:20], "derivatives/manual")  # on a box of its own
    for name, array in (("space-MNI_desc-preproc_T1w", None), ("space-MNI_label-lesion_mask", head.codes(1))):
        save(head, root, f"sub-01_{name}", array, "derivatives/prep", affine=shifted(head))
    found = look(root)
    assert found.modalities["sub-01"] == ("FLAIR", "T1", "T1c", "T2")
    assert {"RAW_OR_PREPROCESSED", "OTHER_SPACE"} <= set(found.codes("note"))


@pytest.mark.slow
def test_a_template_label_on_the_box_of_a_raw_scan(head, root: Path, ingested: Callable) -> None:
    next(root.glob("derivatives/manual/sub-01/anat/*")).unlink()
    save(head, root, "sub-01_space-MNI_label-lesion_mask", head.codes(1), "derivatives/manual")
    done = ingested(root)
    assert done.code == 0
    assert done.store["clinic"]["sub-01"].foreground_count.tolist() == [[8]]


def test_a_label_in_a_space_without_scans(head, root: Path) -> None:
    next(root.glob("derivatives/manual/sub-01/anat/*")).unlink()
    save(head, root, "sub-01_space-MNI_label-lesion_mask", head.codes(1), "derivatives/x", affine=shifted(head))
    assert look(root).errors == [("NO_SCAN_IN_SPACE", "sub-01")]


def test_labels_in_two_templates(head, root: Path) -> None:
    next(root.glob("derivatives/manual/sub-01/anat/*")).unlink()
    for space in ("MNI", "SRI24"):
        save(head, root, f"sub-01_space-{space}_T1w", None, "derivatives/prep", affine=shifted(head))
        name = f"sub-01_space-{space}_label-lesion_mask"
        save(head, root, name, head.codes(1), "derivatives/prep", affine=shifted(head))
    assert look(root).errors == [("SEVERAL_SPACES", "sub-01")]
    chosen = look(root, modalities={"space-SRI24_T1w": "skip"})
    assert (len(chosen.cases), chosen.errors) == (3, [])


def test_a_mask_that_follows_moved_scans_without_saying_so(head, root: Path) -> None:
    next(root.glob("derivatives/manual/sub-01/anat/*")).unlink()
    for name, array in (("desc-preproc_T1w", None), ("label-lesion_mask", head.codes(1))):
        save(head, root, f"sub-01_{name}", array, "derivatives/prep", affine=shifted(head))
    assert "SPACE_DOUBT" in look(root).codes("warning")


def test_a_mask_without_session(head, root: Path) -> None:
    """It belongs to the only session; with two, nobody knows to which."""
    save(head, root, "sub-03_ses-1_T1w")
    save(head, root, "sub-03_label-lesion_mask", head.codes(1), "derivatives/manual")
    found = look(root)
    assert found.errors == []
    assert found.names("sub-03_ses-1")["label:lesion"] == "sub-03_label-lesion_mask.nii.gz"
    save(head, root, "sub-03_ses-2_T1w")
    assert set(look(root).errors) == {
        ("NO_MODALITY", "sub-03"), ("MISSING_FILE", "sub-03_ses-1"), ("MISSING_FILE", "sub-03_ses-2"),
    }  # fmt: skip


def test_a_scan_in_the_folder_of_another(head, root: Path) -> None:
    head.save(root / "sub-01" / "anat" / "sub-02_T2starw.nii.gz")
    assert look(root).errors == [("WRONG_FOLDER", "sub-01")]


def test_rawdata_beside_derivatives(head, tmp_path: Path) -> None:
    root = tmp_path / "study"
    save(head, root, "sub-1_T1w", above="rawdata")
    save(head, root, "sub-1_T1w", above="sourcedata")
    save(head, root, "sub-1_label-lesion_mask", head.codes(1), "derivatives/masks")
    (root / "rawdata" / "participants.tsv").write_text("participant_id\tage\nsub-1\t7\n")
    found = look(root)
    assert found.errors == []
    assert found.files.cases[0].participant["age"] == 7.0


def test_several_datasets_are_not_mixed(head, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(head, tmp_path / "all", "sub-1_T1w", above=name)
    with pytest.raises(SourceError, match=r"2 BIDS datasets \(one, two\)"):
        look(tmp_path / "all")


def test_a_description_that_is_no_json(root: Path) -> None:
    (root / "dataset_description.json").write_text("{")
    found = look(root)
    assert (len(found.cases), found.errors, found.codes("warning")) == (3, [], ["BAD_DESCRIPTION"])


@pytest.mark.slow
def test_codes_that_are_no_mask(head, root: Path, ingested: Callable) -> None:
    save(head, root, "sub-01_label-lesion_mask", head.codes(255), "derivatives/manual")
    assert errors(ingested(root)) == [("LABEL_CODES", "sub-01")]
    assert ingested(root, "--labels", "1=lesion,255=lesion").code == 0
