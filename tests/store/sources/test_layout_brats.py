"""BraTS: two conventions of names and codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from looking import look

from multiseg.errors import LabelError
from multiseg.labels import LabelSchema
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import SourceOptions


def write_new(head, folder: Path, case: str, *codes: int) -> None:
    for name in ("t1n", "t1c", "t2w", "t2f"):
        head.save(folder / case / f"{case}-{name}.nii.gz")
    head.save(folder / case / f"{case}-seg.nii.gz", head.codes(*codes))


def write_old(head, folder: Path, case: str, *codes: int, suffix: str = ".nii.gz") -> Path:
    for name in ("flair", "t1", "t1ce", "t2"):
        head.save(folder / case / f"{case}_{name}{suffix}")
    if codes:
        head.save(folder / case / f"{case}_seg{suffix}", head.codes(*codes))
    return folder / case


def test_until_2021(head, tmp_path: Path, ingested: Callable) -> None:
    folder = tmp_path / "MICCAI_BraTS2020_TrainingData"
    for name in ("flair", "t1", "t1ce", "t2"):
        head.save(folder / "BraTS20_Training_001" / f"BraTS20_Training_001_{name}.nii.gz")
    head.save(folder / "BraTS20_Training_001" / "BraTS20_Training_001_seg.nii.gz", head.codes(1, 2, 4))
    done = ingested(folder)
    assert done.code == 0
    assert "brats2021" in done.said
    database = done.store["MICCAI_BraTS2020_TrainingData"]
    assert database.modalities == ("FLAIR", "T1", "T1c", "T2")
    assert database.schemas["tumour"].names == ("necrosis", "oedema", "enhancing")
    assert (database.cases[0].foreground_count > 0).all()


@pytest.mark.slow
def test_threes_and_fours_in_different_cases_are_asked_for(head, tmp_path: Path, ingested: Callable) -> None:
    write_new(head, tmp_path / "gli", "BraTS-GLI-00000-100", 1, 2, 3)
    write_new(head, tmp_path / "gli", "BraTS-GLI-00001-100", 1, 2, 4)
    refused = ingested(tmp_path / "gli")
    assert refused.code == 3
    assert "none both: is 4 the enhancing tumour" in refused.said
    said = ingested(tmp_path / "gli", "--labels", "tumour:1=necrosis,2=oedema,3=enhancing,4=enhancing")
    assert said.code == 0
    assert (said.store["gli"].cases[1].foreground_count > 0).all()


@pytest.mark.parametrize(
    ("codes", "names", "warned"),
    [
        ([(1, 2, 3), (1, 2)], ("necrosis", "oedema", "enhancing"), []),
        ([(1, 2, 4), (1, 2)], ("necrosis", "oedema", "enhancing"), ["LABEL_CONVENTION"]),
        ([(1, 2, 3, 4), (2, 3)], ("necrosis", "oedema", "enhancing", "resection cavity"), []),
    ],
)
def test_from_2023(head, tmp_path: Path, codes, names, warned) -> None:
    for at, own in enumerate(codes):
        write_new(head, tmp_path / "gli", f"BraTS-GLI-0000{at}-100", *own)
    found = look(tmp_path / "gli")
    assert found.errors == []
    assert found.schemas == {"tumour": names}
    assert found.codes("warning") == warned
    assert found.files.pathology == "glioma"
    people = [(case.subject, case.session) for case in found.files.cases]
    assert people == [("BraTS-GLI-00000", "100"), ("BraTS-GLI-00001", "100")]


@pytest.mark.parametrize(
    ("case", "suffix"),
    [
        ("Brats18_CBICA_AAB_1", ".nii.gz"),
        ("Brats17_TCIA_479_1", ".nii.gz"),
        ("BraTS19_2013_0_1", ".nii"),
        ("BraTS20_Training_001", ".nii"),
        ("BraTS2021_00000", ".nii.gz"),
        ("BRATS_001", ".nii.gz"),
    ],
)
def test_names_of_the_years_until_2021(head, tmp_path: Path, case: str, suffix: str) -> None:
    write_old(head, tmp_path / "data", case, 1, 2, 4, suffix=suffix)
    found = look(tmp_path / "data")
    assert (found.layout, found.others, found.errors) == ("brats2021", (), [])
    assert found.modalities == {case: ("FLAIR", "T1", "T1c", "T2")}
    assert found.names(case)["label:tumour"] == f"{case}_seg{suffix}"


@pytest.mark.slow
def test_code_3_has_no_meaning_until_2021(head, tmp_path: Path, ingested: Callable) -> None:
    write_old(head, tmp_path / "data", "BraTS2021_00000", 1, 2, 3)
    done = ingested(tmp_path / "data")
    assert done.code == 3
    assert done.codes("error") == ["LABEL_CODES"]
    assert ingested(tmp_path / "data", "--labels", "tumour:1=necrosis,2=oedema,3=enhancing").code == 0


def test_grades(head, tmp_path: Path) -> None:
    write_old(head, tmp_path / "MICCAI" / "HGG", "Brats18_CBICA_AAB_1", 1, 2, 4)
    write_old(head, tmp_path / "MICCAI" / "LGG", "Brats18_TCIA09_141_1", 1, 2)
    cases = look(tmp_path / "MICCAI").files.cases
    assert {case.case: case.participant["grade"] for case in cases} == {
        "Brats18_CBICA_AAB_1": "HGG",
        "Brats18_TCIA09_141_1": "LGG",
    }


@pytest.mark.parametrize("inside", ["", "BraTS2021_TrainingSet", "BraTS2021_TrainingSet/UPENN-GBM"])
def test_sources_of_the_archive_are_sites(head, tmp_path: Path, inside: str) -> None:
    write_old(head, tmp_path / "BraTS2021_TrainingSet" / "UPENN-GBM", "BraTS2021_00000", 1, 2, 4)
    assert look(tmp_path / inside).cases["BraTS2021_00000"].site == "UPENN-GBM"


def test_the_mask_of_case_355(head, tmp_path: Path) -> None:
    case = write_old(head, tmp_path / "data", "BraTS20_Training_355")
    head.save(case / "W39_1998.09.19_Segm.nii", head.codes(1, 2, 4))
    found = look(tmp_path / "data")
    assert found.names("BraTS20_Training_355")["label:tumour"] == "W39_1998.09.19_Segm.nii"
    assert found.codes() == []
    head.save(case / "BraTS20_Training_355_seg.nii", head.codes(1))
    again = look(tmp_path / "data")
    assert again.codes() == ["UNUSED_FILES"]
    assert again.names("BraTS20_Training_355")["label:tumour"] == "BraTS20_Training_355_seg.nii"


def test_validation_data_have_no_labels(head, tmp_path: Path) -> None:
    write_old(head, tmp_path / "data" / "Training", "BraTS20_Training_001", 1, 2, 4)
    write_old(head, tmp_path / "data" / "Training", "BraTS20_Training_002")
    write_old(head, tmp_path / "data" / "Validation", "BraTS20_Validation_001")
    found = look(tmp_path / "data")
    assert found.errors == [("MISSING_FILE", "BraTS20_Training_002")]
    case = found.cases["BraTS20_Validation_001"]
    assert (case.labels, case.split) == ({}, "test")


def test_a_lost_sequence_is_said(head, tmp_path: Path) -> None:
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        write_old(head, tmp_path / "data", case, 1, 2, 4)
    (tmp_path / "data" / "BraTS2021_00002" / "BraTS2021_00002_t1ce.nii.gz").unlink()
    found = look(tmp_path / "data")
    assert found.errors == []
    (warning,) = [finding for finding in found.files.findings if finding.severity == "warning"]
    assert (warning.code, warning.case) == ("MISSING_SEQUENCE", "BraTS2021_00002")
    assert "has no T1c" in warning.message


@pytest.mark.slow
def test_kinds_of_tumour_and_visits(head, tmp_path: Path, ingested: Callable) -> None:
    for case in ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-MET-00001-000", "BraTS-GoAT-00007"):
        write_new(head, tmp_path / "data", case, 1, 2, 3)
    done = ingested(tmp_path / "data")
    assert done.code == 0
    assert done.codes("warning") == []
    database = done.store["data"]
    assert database.pathology == "brain metastasis and brain tumour and glioma"
    assert {case.name: (case.subject, case.session) for case in database.cases} == {
        "BraTS-GLI-00005-100": ("BraTS-GLI-00005", "100"),
        "BraTS-GLI-00005-101": ("BraTS-GLI-00005", "101"),
        "BraTS-MET-00001-000": ("BraTS-MET-00001", "000"),
        "BraTS-GoAT-00007": ("BraTS-GoAT-00007", ""),
    }
    assert database["BraTS-GLI-00005-100"].split == database["BraTS-GLI-00005-101"].split


def test_paediatric_numbers_are_asked_for(head, tmp_path: Path) -> None:
    write_new(head, tmp_path / "ped", "BraTS-PED-00001-000", 1, 2, 3)
    assert look(tmp_path / "ped").codes("warning") == ["LABEL_CONVENTION"]
    write_new(head, tmp_path / "ped", "BraTS-PED-00002-000", 1, 2, 3, 4)
    with pytest.raises(LabelError, match="with other codes"):
        look(tmp_path / "ped")
    told = look(tmp_path / "ped", codes={"tumour": "1=enhancing,2=non-enhancing,3=cyst,4=oedema"})
    assert (len(told.cases), told.codes("error", "warning")) == (2, [])
    assert told.schemas == {"tumour": ("enhancing", "non-enhancing", "cyst", "oedema")}


def test_two_meanings_of_4_in_one_folder(head, tmp_path: Path) -> None:
    write_new(head, tmp_path / "data", "BraTS-GLI-00005-100", 1, 2, 3, 4)
    write_new(head, tmp_path / "data", "BraTS-MET-00001-000", 1, 2, 4)
    with pytest.raises(LabelError, match="resection cavity in GLI"):
        look(tmp_path / "data")


@pytest.mark.slow
def test_a_damaged_label_is_its_own_cases_fault(head, tmp_path: Path, ingested: Callable) -> None:
    for case in ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000"):
        write_new(head, tmp_path / "data", case, 1, 2, 3)
    label = tmp_path / "data" / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-seg.nii.gz"
    label.write_bytes(label.read_bytes()[:200])
    done = ingested(tmp_path / "data")
    assert done.code == 4
    assert done.codes("error") == ["DAMAGED_FILE"]
    assert done.report["written"] == ["BraTS-GLI-00002-000"]


@pytest.mark.slow
def test_for_radiotherapy(head, tmp_path: Path, ingested: Callable) -> None:
    for case, is_labelled in (("BraTS-MEN-RT-0002-1", True), ("BraTS-MEN-RT-0003-1", False)):
        head.save(tmp_path / "Training" / case / f"{case}_t1c.nii.gz")
        if is_labelled:
            head.save(tmp_path / "Training" / case / f"{case}_gtv.nii.gz", head.codes(1))
    done = ingested(tmp_path / "Training")
    assert "(brats_men_rt)" in done.said
    assert "could also be" not in done.said
    assert done.report["failed"] == ["BraTS-MEN-RT-0003-1"]
    database = done.store["Training"]
    (case,) = database.cases
    assert (case.subject, case.session, case.modalities) == ("BraTS-MEN-RT-0002", "1", ("T1c",))
    assert database.schemas["gtv"].names == ("gtv",)
    assert (case.foreground_count == 8).all()


def test_for_radiotherapy_validation(head, tmp_path: Path) -> None:
    head.save(tmp_path / "Validation" / "BraTS-MEN-RT-0009-1" / "BraTS-MEN-RT-0009-1_t1c.nii.gz")
    found = look(tmp_path / "Validation")
    assert (found.files.cases[0].split, found.errors) == ("test", [])


def test_real_cases(data: Path, ingested: Callable) -> None:
    done = ingested(data / "brats")
    assert done.code == 0
    database = done.store["brats"]
    assert len(database.cases) == 3
    assert all(case.modalities == ("FLAIR", "T1", "T1c", "T2") for case in database.cases)
    assert all(case.foreground_count.sum() > 0 for case in database.cases)
    assert "LABEL_CONVENTION" in done.codes("warning")


def write_mixed(head, folder: Path, case: str, names: tuple[str, ...], *codes: int) -> None:
    for name in names:
        head.save(folder / case / f"{case}{name}.nii.gz")
    head.save(folder / case / f"{case}{names[0][0]}seg.nii.gz", head.codes(*codes))


OLD_NAMES, NEW_NAMES = ("_t1", "_t1ce", "_t2", "_flair"), ("-t1n", "-t1c", "-t2w", "-t2f")
NEW_CODES = "1=necrosis,2=oedema,3=enhancing"


@pytest.mark.parametrize(
    ("case", "names", "codes", "taken"),
    [
        ("BraTS-GLI-0000{}-000", OLD_NAMES, [(1, 2, 4), (1, 2)], "1=necrosis,2=oedema,4=enhancing"),
        ("BraTS-GLI-0000{}-000", OLD_NAMES, [(1, 2), (1, 2, 3)], NEW_CODES),
        ("BraTS-GLI-0000{}-000", OLD_NAMES, [(2, 3), (1, 2, 3, 4)], f"{NEW_CODES},4=resection cavity"),
        ("BraTS2021_0000{}", NEW_NAMES, [(1, 2), (1, 2, 4)], "1=necrosis,2=oedema,4=enhancing"),
        ("BraTS2021_0000{}", NEW_NAMES, [(1, 2, 3), (1, 2)], NEW_CODES),
        ("BraTS-GLI-0000{}-000", ("-t1n", "_t1ce", "-t2w", "_flair"), [(1, 2, 3), (3,)], NEW_CODES),
    ],
)
def test_folders_of_one_convention_with_files_of_the_other(
    head, tmp_path: Path, case: str, names: tuple[str, ...], codes: list[tuple[int, ...]], taken: str
) -> None:
    for at, own in enumerate(codes):
        write_mixed(head, tmp_path / "gli", case.format(at), names, *own)
    files = find_source(tmp_path / "gli")
    assert [set(found.images) for found in files.cases] == [{"T1", "T1c", "T2", "FLAIR"}] * 2
    assert files.cases[0].images["T1c"].name == f"{case.format(0)}{names[1]}.nii.gz"
    assert files.schemas == {"tumour": LabelSchema.parse(taken, "lesion")}
    said = [finding.message for finding in files.findings if finding.code == "LABEL_CONVENTION"]
    assert f"the codes of all labels decide: they are read as {taken}." in said[-1]


@pytest.mark.parametrize("codes", [[(1, 2, 3), (1, 2, 4)], [(1, 2, 3, 4), (1,)]])
def test_old_folders_with_new_names_and_both_numbers_are_asked_for(head, tmp_path: Path, codes) -> None:
    for at, own in enumerate(codes):
        write_mixed(head, tmp_path / "gli", f"BraTS2021_0000{at}", NEW_NAMES, *own)
    with pytest.raises(LabelError, match="have 3 and 4: is 4 the enhancing tumour, and what is 3"):
        find_source(tmp_path / "gli")


def test_a_sequence_under_both_names(head, tmp_path: Path) -> None:
    write_mixed(head, tmp_path / "gli", "BraTS-GLI-00000-000", (*NEW_NAMES, "_t1ce"), 1, 2, 3)
    files = find_source(tmp_path / "gli")
    (error,) = [finding for finding in files.findings if finding.severity == "error"]
    assert error.code == "DUPLICATE_CASE"
    assert "--modality t1c=T1c or --modality t1ce=T1c" in error.message
    (case,) = find_source(tmp_path / "gli", SourceOptions(modalities={"t1ce": "skip"})).cases
    assert case.images["T1c"].name == "BraTS-GLI-00000-000-t1c.nii.gz"


def test_cases_of_the_other_convention_are_not_lost_without_a_word(head, tmp_path: Path) -> None:
    write_new(head, tmp_path / "gli", "BraTS-GLI-00000-000", 1, 2, 3)
    write_old(head, tmp_path / "gli", "BraTS2021_00001", 1, 2, 4)
    files = find_source(tmp_path / "gli")
    assert [case.case for case in files.cases] == ["BraTS-GLI-00000-000"]
    (unused,) = [finding for finding in files.findings if finding.code == "UNUSED_SCANS"]
    assert unused.severity == "warning"
    assert "4 files are not used" in unused.message
