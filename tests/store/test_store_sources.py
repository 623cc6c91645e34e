"""Finding files: by patterns, TOML and CSV; what is doubtful is said, nothing is guessed."""

from dataclasses import replace
from pathlib import Path

import pytest

from multiseg.errors import LabelError, SourceError, UsageError
from multiseg.store.findings import Severity
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.sources.participants import read_participants
from multiseg.store.sources.pattern import compile_pattern
from multiseg.store.sources.pattern_source import PatternSource, find_database
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import DatabaseFiles, SourceOptions


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, pattern: str = "{case}/{modality}.nii.gz", **kw: object) -> DatabaseFiles:
    return find_database(PatternSource("db", root, pattern, **kw))


def codes(files: DatabaseFiles) -> list[tuple[str, str]]:
    return [(finding.code, finding.case) for finding in files.findings]


def test_a_pattern_gathers_cases(tmp_path: Path) -> None:
    folder(
        tmp_path, "P2/t1.nii.gz", "P1/t1.nii.gz", "P1/flair.nii.gz", "P1/seg.nii.gz", "P2/seg.nii.gz", "P1/notes.txt"
    )
    files = found(tmp_path, labels={"seg": "{case}/seg.nii.gz"}, codes={"seg": "1=core,2=oedema"})
    assert [case.case for case in files.cases] == ["P1", "P2"]
    assert files.cases[0].images == {"T1": tmp_path / "P1/t1.nii.gz", "FLAIR": tmp_path / "P1/flair.nii.gz"}
    assert files.cases[0].labels == {"seg": tmp_path / "P1/seg.nii.gz"}
    assert files.cases[0].subject == "P1"
    assert files.schemas["seg"].names == ("core", "oedema")
    assert not files.findings
    assert files.brain_mask == "nonzero"


def test_a_name_that_stands_twice_must_be_the_same(tmp_path: Path) -> None:
    folder(tmp_path, "P1/P1_t1.nii.gz", "P2/P1_t2.nii.gz")
    files = found(tmp_path, "{case}/{case}_{modality}.nii.gz")
    assert [(case.case, list(case.images)) for case in files.cases] == [("P1", ["T1"])]


def test_subject_session_and_site_fields(tmp_path: Path) -> None:
    folder(tmp_path, "A/sub-1_ses-2_T1w.nii.gz", "A/sub-1_ses-3_T1w.nii.gz", "B/sub-2_ses-1_T1w.nii.gz")
    files = found(tmp_path, "{site}/sub-{subject}_ses-{session}_{modality}.nii.gz")
    assert [(c.case, c.subject, c.session, c.site) for c in files.cases] == [
        ("1_2", "1", "2", "A"), ("1_3", "1", "3", "A"), ("2_1", "2", "1", "B"),
    ]  # fmt: skip


def test_two_patients_of_one_name_are_never_mixed(tmp_path: Path) -> None:
    folder(tmp_path, "A/01_T1.nii.gz", "B/01_FLAIR.nii.gz", "B/02_T1.nii.gz")
    files = found(tmp_path, "{site}/{case}_{modality}.nii.gz")
    assert [case.case for case in files.cases] == ["02"]
    assert codes(files) == [("DUPLICATE_CASE", "01")]
    assert "the site 'A' and the site 'B'" in files.findings[0].message


def test_hidden_files_and_folders_do_not_exist(tmp_path: Path) -> None:
    folder(tmp_path, "P1/t1.nii.gz", "P1/._t2.nii.gz", ".Trash/t1.nii.gz")
    files = found(tmp_path)
    assert [(case.case, list(case.images)) for case in files.cases] == [("P1", ["T1"])]


def test_unknown_sequences_are_left_out_and_said(tmp_path: Path) -> None:
    folder(tmp_path, "P1/t1.nii.gz", "P1/mtr.nii.gz", "P2/mtr.nii.gz", "P2/t1.nii.gz")
    files = found(tmp_path)
    assert [list(case.images) for case in files.cases] == [["T1"], ["T1"]]
    (finding,) = files.findings
    assert (finding.code, finding.severity) == ("UNKNOWN_SEQUENCE", Severity.WARNING)
    assert "'mtr' is not a known sequence; 2 such files are left out" in finding.message
    assert list(found(tmp_path, modalities={"mtr": "MTR"}).cases[0].images) == ["MTR", "T1"]
    (tmp_path / "P2" / "mtr.nii.gz").unlink()
    assert "1 such file is left out" in found(tmp_path).findings[0].message


def test_a_given_spelling_is_the_sequence_of_that_name(tmp_path: Path) -> None:
    folder(tmp_path, "P1/anat.nii.gz")
    assert list(found(tmp_path, modalities={"anat": "t1w"}).cases[0].images) == ["T1"]


def test_a_pattern_without_a_sequence_takes_it_from_the_file_name(tmp_path: Path) -> None:
    folder(tmp_path, "P1/FLAIR.nii.gz")
    assert list(found(tmp_path, "{case}/FLAIR.nii.gz").cases[0].images) == ["FLAIR"]
    folder(tmp_path, "P1/scan.nii.gz")
    assert "'scan' is not a known sequence" in found(tmp_path, "{case}/scan.nii.gz").findings[0].message


def test_two_files_of_one_sequence(tmp_path: Path) -> None:
    folder(tmp_path, "P1/t1.nii.gz", "P1/t1w.nii.gz", "P2/t1.nii.gz")
    files = found(tmp_path)
    assert [case.case for case in files.cases] == ["P2"]
    assert codes(files) == [("DUPLICATE_CASE", "P1")]
    assert "P1/t1.nii.gz and P1/t1w.nii.gz" in files.findings[0].message


def test_missing_labels_and_masks(tmp_path: Path) -> None:
    folder(tmp_path, "P1/t1.nii.gz", "P1/l.nii.gz", "P1/m.nii.gz", "P2/t1.nii.gz", "P2/m.nii.gz", "P3/t1.nii.gz")
    folder(tmp_path, "P3/l.nii.gz", "P4/l.nii.gz", "P4/m.nii.gz")
    asked = {"labels": {"lesion": "{case}/l.nii.gz"}, "brain_mask": "{case}/m.nii.gz"}
    files = found(tmp_path, **asked)
    assert [case.case for case in files.cases] == ["P1"]
    assert codes(files) == [("MISSING_FILE", "P2"), ("MISSING_FILE", "P3"), ("NO_MODALITY", "P4")]
    assert files.cases[0].brain_mask == tmp_path / "P1/m.nii.gz"
    assert files.brain_mask == "file"
    assert [c.case for c in found(tmp_path, allow_unlabelled=True, **asked).cases] == ["P1", "P2"]


def test_a_pattern_is_an_option_of_a_source(tmp_path: Path) -> None:
    """`find_source` takes it as a layout that the user describes, and says what does not go with it."""
    folder(tmp_path, "P1/t1.nii.gz", "P1/l.nii.gz", "P1/m.nii.gz")
    pattern, labels, mask = "{case}/{modality}.nii.gz", {"lesion": "{case}/l.nii.gz"}, "{case}/m.nii.gz"
    options = SourceOptions(name="db", pattern=pattern, labels=labels, brain_mask=mask, licence="CC0")
    assert find_source(tmp_path, options) == found(tmp_path, labels=labels, brain_mask=mask, licence="CC0")
    assert find_source(tmp_path, options).licence == "CC0"
    assert find_source(tmp_path, replace(options, name="")).name == tmp_path.name
    with pytest.raises(UsageError, match="--as bids and --pattern both say where files are"):
        find_source(tmp_path, options, "bids")
    with pytest.raises(UsageError, match=r"the pattern of images is missing\. Add --pattern"):
        find_source(tmp_path, SourceOptions(labels=labels))


def test_codes_of_a_label_that_no_file_fits(tmp_path: Path) -> None:
    files = found(folder(tmp_path, "P1/t1.nii.gz"), labels={"seg": "{case}/seg.nii.gz"}, codes={"seg": "1=core"})
    assert codes(files) == [("MISSING_FILE", "P1")]


@pytest.mark.parametrize(
    "pattern", ["", "{case}/{scan}.nii", "t1/{modality}.nii", "{case}/{modality", "{case}{}.nii", "{a b}"]
)
def test_patterns_that_cannot_be_meant(pattern: str) -> None:
    with pytest.raises(UsageError, match="the pattern"):
        compile_pattern(pattern)
    with pytest.raises(UsageError, match="the pattern"):
        find_database(PatternSource("db", ".", pattern))


def test_stars_in_patterns() -> None:
    assert compile_pattern("**/{case}_*.nii").fullmatch("a/b/P1_x.nii")["case"] == "P1"
    assert compile_pattern("*/{case}.nii").fullmatch("a/b/P1.nii") is None
    assert compile_pattern("{case}.(1).nii").fullmatch("P1.(1).nii")


def test_nothing_found_says_what_would_fit(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none of the 1 files .* It would match, for instance, 'case01/T1\.nii\.gz'"):
        found(folder(tmp_path, "x.nii"))
    with pytest.raises(SourceError, match=r"folder .* does not exist"):
        found(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="codes are given for the annotation 'seg'"):
        found(folder(tmp_path, "P1/t1.nii.gz"), codes={"seg": "1=core"})


def test_participants(tmp_path: Path) -> None:
    folder(tmp_path, "P1/t1.nii.gz", "P2/t1.nii.gz", "P3/t1.nii.gz")
    (tmp_path / "p.csv").write_text(
        'case,age,sex,site,split,notes\nP1,61,F,north,test,"two\nlines"\nP2,,M,south,,\nP9,1,F,,,\n',
        encoding="utf-8-sig",
    )
    files = found(tmp_path, participants="p.csv")
    first, second, third = files.cases
    assert first.participant == {"age": 61.0, "sex": "F", "notes": "two\nlines"}
    assert (first.site, first.split, second.split) == ("north", "test", "")
    assert second.participant["age"] != second.participant["age"]
    assert third.participant == {}
    assert [f.message.split(":")[0] for f in files.findings] == [
        "1 rows of p.csv name no case",
        "1 cases have no row in p.csv",
    ]


def test_sites_and_splits_in_a_table_stay_text(tmp_path: Path) -> None:
    """A number is a site's name, nothing is no site, and a split may be spelt in several ways."""
    folder(tmp_path, "P1/t1.nii.gz", "P2/t1.nii.gz", "P3/t1.nii.gz")
    for text, told in (
        ("case,site,split,age\nP1,1,Training,3\nP2,02,validation,4\nP3,,Test,5\n",
         [("1", "train"), ("02", "val"), ("", "test")]),
        ("case,split\nP1,\nP2, \nP3,\n", [("", "")] * 3),
    ):  # fmt: skip
        (tmp_path / "p.csv").write_text(text)
        assert [(case.site, case.split) for case in found(tmp_path, participants="p.csv").cases] == told
    (tmp_path / "p.csv").write_text("case,split\nP1,train\nP2,dev\nP3,holdout\n")
    with pytest.raises(UsageError, match=r"p\.csv: the split 'holdout' of 'P3' is not one of train, val, test"):
        found(tmp_path, participants="p.csv")
    (tmp_path / "ids.csv").write_text("case,subject,session\nP1,1,\nP2,2,\n")
    assert read_participants(tmp_path / "ids.csv", "db")[0]["P2"] == {"subject": "2", "session": ""}


def test_participants_that_cannot_be_read(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    for text, says in ((b"case,age\n", "has no rows"), (b"case,age\nP1,1\nP1,2\n", "has two rows for 'P1'"),
                       (b"case,site\nP1,M\xfcnchen\n", "is not in UTF-8")):  # fmt: skip
        table.write_bytes(text)
        with pytest.raises(SourceError, match=says):
            read_participants(table, "db")
    with pytest.raises(SourceError, match="does not exist"):
        read_participants(tmp_path / "none.csv", "db")
    (tmp_path / "p.tsv").write_text("participant_id\tage\nsub-1\t40\n")
    assert read_participants(tmp_path / "p.tsv", "db") == ({"sub-1": {"age": 40.0}}, ())


TOML = """
[[database]]
name = "ms"
root = "ms"
pattern = "{case}/{modality}.nii.gz"
pathology = "multiple sclerosis"
labels.lesion = "{case}/lesion.nii.gz"
"""


def test_a_toml_manifest(tmp_path: Path) -> None:
    folder(tmp_path, "ms/P1/t1.nii.gz", "ms/P1/lesion.nii.gz")
    manifest = tmp_path / "m.toml"
    manifest.write_text(TOML)
    (files,) = find_manifest(manifest)
    assert (files.name, files.pathology, files.cases[0].case) == ("ms", "multiple sclerosis", "P1")
    for text, says in (
        (TOML + "patern = 'x'\n", r"unknown keys \['patern'\] and lacks \[\]"),
        (TOML.replace("root", "# root"), r"lacks \['root'\]"),
        (TOML.replace('"{case}/{modality}.nii.gz"', '""'), r"lacks \['pattern'\]"),
        ("spacing = 1\n" + TOML, r"nothing else, but has \['spacing'\]"),
        ("", "but has none"),
        ("[[database", "is not valid TOML"),
    ):
        manifest.write_text(text)
        with pytest.raises(UsageError, match=says):
            find_manifest(manifest)
    with pytest.raises(SourceError, match=r"manifest .* does not exist"):
        find_manifest(tmp_path / "none.toml")


def csv_manifest(root: Path, text: str) -> list[DatabaseFiles]:
    (root / "m.csv").write_text(text, encoding="utf-8")
    return find_manifest(root / "m.csv")


def test_a_csv_manifest(tmp_path: Path) -> None:
    one, two = csv_manifest(
        tmp_path,
        "database,case,subject,pathology,t1ce,FLAIR,image:MTR,label,codes,label:tissue,age,split\n"
        'a,P1,S,glioma,x/t1c.nii,x/f.nii,,x/l.nii,"1=core,2=oedema",,61,train\n'
        "a,P2,,glioma,,y/f.nii,y/m.nii,y/l.nii,,y/t.nii,,\n"
        "b,P1,,stroke,z/t.nii,,,,,,50,\n",
    )
    first, second = one.cases
    assert first.images == {"T1c": tmp_path / "x/t1c.nii", "FLAIR": tmp_path / "x/f.nii"}
    assert (first.subject, first.split, first.participant) == ("S", "train", {"age": 61.0})
    assert second.images == {"FLAIR": tmp_path / "y/f.nii", "MTR": tmp_path / "y/m.nii"}
    assert second.labels == {"lesion": tmp_path / "y/l.nii", "tissue": tmp_path / "y/t.nii"}
    assert (second.subject, second.participant) == ("P2", {})
    assert one.schemas["lesion"].names == ("core", "oedema")
    assert one.schemas["tissue"].structures[0].kind == "tissue"
    assert (two.name, two.pathology, two.brain_mask) == ("b", "stroke", "nonzero")


def test_columns_of_files_are_read_as_names_are(tmp_path: Path) -> None:
    (files,) = csv_manifest(tmp_path, "database,case,t1_mprage_KM,T2 tse,T1 volume\na,P1,x.nii,y.nii.gz,812\n")
    (case,) = files.cases
    assert dict(case.images) == {"T1c": tmp_path / "x.nii", "T2": tmp_path / "y.nii.gz"}
    assert dict(case.participant) == {"T1 volume": 812}
    message = r"'T1_pve' has files such as x\.nii, .*\(named T1, but also a map, not a scan\)\. Call it image:T1"
    with pytest.raises(UsageError, match=message):
        csv_manifest(tmp_path, "database,case,T1_pve\na,P1,x.nii\n")
    with pytest.raises(UsageError, match="both name T1c files"):
        csv_manifest(tmp_path, "database,case,t1_KM,T1c\na,P1,x.nii,y.nii\n")


def test_a_csv_manifest_spells_splits_as_split_files_do(tmp_path: Path) -> None:
    (files,) = csv_manifest(tmp_path, "database,case,T1,site,split\na,P1,x.nii,1,Training\na,P2,y.nii,2,\n")
    assert [(case.site, case.split) for case in files.cases] == [("1", "train"), ("2", "")]
    with pytest.raises(UsageError, match=r"m\.csv: the split 'fold1' of 'P1' is not one of"):
        csv_manifest(tmp_path, "database,case,T1,split\na,P1,x.nii,fold1\n")


def test_a_csv_manifest_has_one_pathology_a_database(tmp_path: Path) -> None:
    (files,) = csv_manifest(tmp_path, "database,case,T1,pathology\na,P1,x.nii,\na,P2,y.nii,glioma\n")
    assert files.pathology == "glioma"
    with pytest.raises(SourceError, match=r"m\.csv: database 'a' has several pathologies \(glioma, stroke\)"):
        csv_manifest(tmp_path, "database,case,T1,pathology\na,P1,x.nii,stroke\na,P2,y.nii,glioma\n")


def test_two_rows_of_one_case_leave_both_out(tmp_path: Path) -> None:
    (files,) = csv_manifest(tmp_path, "database,case,T1\na,P1,x.nii\na,P1,y.nii\na,P2,z.nii\n")
    assert [case.case for case in files.cases] == ["P2"]
    assert codes(files) == [("DUPLICATE_CASE", "P1")]


def test_csv_manifests_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a header with at least database and case"):
        csv_manifest(tmp_path, "case,T1\nP1,x.nii\n")
    with pytest.raises(UsageError, match="columns 'T1' and 't1w' both name T1 files"):
        csv_manifest(tmp_path, "database,case,T1,t1w\na,P1,x.nii,y.nii\n")
    with pytest.raises(UsageError, match="have a brain_mask and some do not"):
        csv_manifest(tmp_path, "database,case,T1,brain_mask\na,P1,x.nii,m.nii\na,P2,y.nii,\n")
    with pytest.raises(LabelError, match="gives codes two meanings"):
        csv_manifest(tmp_path, "database,case,T1,codes\na,P1,x.nii,1=a\na,P2,y.nii,1=b\n")
