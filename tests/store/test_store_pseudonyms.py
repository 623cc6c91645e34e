"""Pseudonyms: the same file gives the same names, and the store holds nothing of the real ones, wherever it lies."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr

from multiseg.cli.app import run
from multiseg.errors import ResourceError, StoreError, UsageError
from multiseg.files import lock_folder
from multiseg.store.cases import CaseFiles
from multiseg.store.checks.verification import verify_store
from multiseg.store.findings import Finding, Severity
from multiseg.store.formats.nifti import write_like
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.ingest.dry_run import forecast
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import IngestReport, ingest
from multiseg.store.ingest.pseudonyms import RealNames, read_book
from multiseg.store.reader import open_store
from multiseg.store.sources.source_types import DatabaseFiles

SHAPE, AFFINE = (20, 22, 18), np.diag([8.0, 8.0, 8.0, 1.0])
REAL = ("SMITH", "JONES", "20200131", "20210228")


def scan(path: Path, seed: int, kind: type[nib.Nifti1Image] = nib.Nifti1Image) -> Path:
    """A scan with the patient's name wherever a NIfTI header has room."""
    voxels = np.zeros(SHAPE, np.float32)
    voxels[3:-3, 3:-3, 3:-3] = np.random.default_rng(seed).integers(200, 900, tuple(n - 6 for n in SHAPE))
    image = kind(voxels, AFFINE)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        if field in image.header:
            image.header[field] = b"SMITH"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.fixture
def visits(tmp_path: Path) -> DatabaseFiles:
    """Two visits of one patient, and one of another, named as DICOM studies are."""
    root = tmp_path / "SMITH and others"
    rows = [
        ("SMITH", "20200131", nib.Nifti1Image),
        ("SMITH", "20210228", nib.Nifti2Image),
        ("JONES", "20200131", nib.Nifti1Image),
    ]
    cases = tuple(
        CaseFiles(
            f"{who}_{when}", {"T1": scan(root / who / f"{who}_{when}_T1.nii", at, kind)}, subject=who, session=when,
            site="ward of SMITH", participant={"age": 40.0 + at, "note": f"{who}, seen {when}", "day": float(when)},
        )
        for at, (who, when, kind) in enumerate(rows)
    )  # fmt: skip
    return DatabaseFiles("clinic", "", cases, {})


def options(tmp_path: Path, **more: object) -> IngestOptions:
    return IngestOptions(spacing_mm=(8.0, 8.0, 8.0), pseudonyms=str(tmp_path / "names.json"), **more)


def everything_in(url: str) -> Iterator[str]:
    """Every text and every byte that a store holds, undone of its compression, and the names of its files."""
    root = zarr.open_group(url, mode="r", use_consolidated=False)
    for folder, _, files in os.walk(url):
        yield folder.removeprefix(url)
        yield from files
        yield from (Path(folder, file).read_bytes().decode("latin-1") for file in files)
    for _, database in root.groups():
        yield json.dumps(database.attrs.asdict())
        for name, array in database.arrays():
            yield name + json.dumps(array.attrs.asdict())
            values = np.asarray(array[:]) if name not in ("image", "label", "foreground") else np.zeros(0)
            yield values.tobytes().decode("latin-1") if values.dtype == np.uint8 else repr(values.tolist())


def assert_nothing_of(names: tuple[str, ...], url: str) -> None:
    everything = "\n".join(everything_in(url))
    assert "T1" in everything
    assert [name for name in names if name.lower() in everything.lower()] == []


def taken(visits: DatabaseFiles, tmp_path: Path, **more: object) -> tuple[IngestReport, str]:
    url = str(tmp_path / "s.zarr")
    (report,) = ingest([visits], url, options(tmp_path, **more))
    return report, url


def test_the_store_holds_nothing_of_the_real_names(visits: DatabaseFiles, tmp_path: Path) -> None:
    report, url = taken(visits, tmp_path)
    assert len(report.written) == 3
    assert_nothing_of(REAL, url)
    first, second, other = open_store(url).cases
    assert first.subject == second.subject != other.subject
    assert len({case.session for case in (first, second, other)}) == 3
    assert first.split == second.split
    assert first.participant["age"] == 40
    assert verify_store(url) == []
    names = json.loads((tmp_path / "names.json").read_text())["names"]
    assert names["subject"] == {"SMITH": first.subject, "JONES": other.subject}
    assert names["case"]["SMITH_20210228"] == second.name
    assert names["session"]["JONES 20200131"] == other.session
    assert (tmp_path / "names.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_without_a_file_the_names_are_real(visits: DatabaseFiles, tmp_path: Path) -> None:
    """Or the test above would see nothing."""
    url = str(tmp_path / "s.zarr")
    ingest([visits], url, IngestOptions(spacing_mm=(8.0, 8.0, 8.0)))
    with pytest.raises(AssertionError, match="SMITH"):
        assert_nothing_of(REAL, url)


@pytest.mark.slow
def test_a_later_visit_meets_the_same_person(visits: DatabaseFiles, tmp_path: Path) -> None:
    one, url = taken(replace(visits, cases=visits.cases[::2]), tmp_path)
    before = json.loads((tmp_path / "names.json").read_text())
    two, _ = taken(visits, tmp_path)
    after = json.loads((tmp_path / "names.json").read_text())
    assert two.skipped == one.written
    assert len(two.written) == 1
    smith = {case.subject for case in open_store(url).cases if case.name.startswith(after["names"]["subject"]["SMITH"])}
    assert len(smith) == 1
    assert sum(case.subject in smith for case in open_store(url).cases) == 2
    assert after["key"] == before["key"]
    assert after["names"]["subject"] == before["names"]["subject"]
    assert set(after["names"]["case"]) - set(before["names"]["case"]) == {"SMITH_20210228"}


@pytest.mark.slow
def test_another_key_gives_other_names(visits: DatabaseFiles, tmp_path: Path) -> None:
    taken(visits, tmp_path)
    other = replace(options(tmp_path), pseudonyms=str(tmp_path / "other.json"))
    ingest([visits], str(tmp_path / "t.zarr"), other)
    one, two = ({case.name for case in open_store(str(tmp_path / name)).cases} for name in ("s.zarr", "t.zarr"))
    assert not one & two
    for wrong in (other, replace(other, pseudonyms="")):
        with pytest.raises(StoreError, match=r"'clinic': its cases .*--pseudonyms FILE"):
            ingest([visits], str(tmp_path / "s.zarr"), wrong)
    ingest([visits], str(tmp_path / "u.zarr"), replace(other, pseudonyms=""))
    with pytest.raises(StoreError, match="real names"):
        ingest([visits], str(tmp_path / "u.zarr"), other)


@pytest.mark.slow
def test_splits_and_redo_are_given_by_real_names(visits: DatabaseFiles, tmp_path: Path) -> None:
    report, url = taken(visits, tmp_path, given_splits={"SMITH": "test", "JONES_20200131": "val"})
    splits = {case.name: case.split for case in open_store(url).cases}
    assert [splits[name] for name in report.written] == ["test", "test", "val"]
    again, _ = taken(
        visits,
        tmp_path,
        given_splits={"SMITH": "test", "JONES": "val"},
        redo=("clinic/SMITH_20200131", "JONES_20200131"),
    )
    assert len(again.written) == 2
    with pytest.raises(UsageError, match="no case nobody"):
        taken(visits, tmp_path, redo=("nobody",))


@pytest.mark.slow
def test_findings_name_the_pseudonym_and_the_file(visits: DatabaseFiles, tmp_path: Path) -> None:
    path = next(iter(visits.cases[0].images.values()))
    path.write_bytes(b"nothing")
    odd = Finding(Severity.ERROR, "MISSING_FILE", "clinic", "DOE_1", "", "has no label.")
    report, url = taken(replace(visits, findings=(odd,)), tmp_path)
    book = read_book(tmp_path / "names.json")
    assert {f.case for f in report.findings if f.severity == "error"} == {
        book.names["case"]["DOE_1"], book.names["case"]["SMITH_20200131"]
    }  # fmt: skip
    assert set(report.failed) == {f.case for f in report.findings if f.severity == "error"}
    assert_nothing_of((*REAL, "DOE_1"), url)


def test_an_answer_still_goes_home(visits: DatabaseFiles, tmp_path: Path) -> None:
    """The header lost its texts, and no number."""
    _, url = taken(visits, tmp_path)
    database = zarr.open_group(url, mode="r")["clinic"]
    for row, size in ((0, 348), (1, 540)):
        header = bytes(np.asarray(database["native_header"][row]))[:size]
        write_like(tmp_path / "home.nii", np.ones(SHAPE, np.uint8), header)
        np.testing.assert_allclose(read_volume(tmp_path / "home.nii").affine, AFFINE)


def test_a_rehearsal_writes_no_names(visits: DatabaseFiles, tmp_path: Path) -> None:
    told = forecast(visits, str(tmp_path / "s.zarr"), options(tmp_path), {"SMITH", "JONES"})
    assert len(told.new) == 3
    assert not any("SMITH" in name for name in told.new)
    assert not (tmp_path / "names.json").exists()
    report, _ = taken(visits, tmp_path)
    assert forecast(visits, str(tmp_path / "s.zarr"), options(tmp_path)).same == report.written


def test_files_that_can_hold_no_names(visits: DatabaseFiles, tmp_path: Path) -> None:
    url = str(tmp_path / "s.zarr")
    _, _ = taken(visits, tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "s.zarr")
    (tmp_path / "odd.json").write_text('{"a": 1}')
    for place, said in (
        (f"{url}/names.json", "is inside the store"),
        (str(tmp_path / "link" / "names.json"), "is inside the store"),
        ("s3://bucket/names.json", "on this machine"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "odd.json"), "is not a file of pseudonyms"),
    ):
        with pytest.raises(UsageError, match=said):
            ingest([visits], url, replace(options(tmp_path), pseudonyms=place))
    assert (tmp_path / "odd.json").read_text() == '{"a": 1}'
    with pytest.raises(UsageError, match="the database, 'SMITH scans', contains that of the patient or case 'SMITH'"):
        ingest([replace(visits, name="SMITH scans")], url, options(tmp_path))
    (tmp_path / "names.json").chmod(0o644)
    taken(visits, tmp_path)
    assert (tmp_path / "names.json").stat().st_mode & 0o777 == 0o600


def test_one_process_at_a_time_adds_names(visits: DatabaseFiles, tmp_path: Path) -> None:
    import subprocess
    import sys

    lock = tmp_path / ".names.json.lock"
    code = f"import fcntl; f = open({str(lock)!r}, 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ResourceError, match="it is adding names to the same file"):
            taken(visits, tmp_path)
        other.communicate(b"\n")
    with lock_folder(lock, ""):
        pass


@pytest.mark.slow
def test_from_the_command_line_with_a_patients_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "study"
    for seed, who in enumerate(("SMITH", "JONES")):
        scan(root / f"sub-{who}" / "ses-20200131" / "anat" / f"sub-{who}_ses-20200131_T1w.nii.gz", seed)
    (root / "dataset_description.json").write_text('{"Name": "study", "BIDSVersion": "1.8.0"}')
    (root / "participants.tsv").write_text(
        "participant_id\tage\tnote\nsub-SMITH\t40\tSMITH was here\nsub-JONES\t50\tn/a\n"
    )
    url = str(tmp_path / "s.zarr")
    code = run(
        [
            "ingest",
            str(root),
            "--store",
            url,
            "--spacing",
            "8",
            "--allow-unlabelled",
            "--pseudonyms",
            str(tmp_path / "n.json"),
        ]
    )
    assert code == 0
    assert_nothing_of(("SMITH", "JONES", "20200131"), url)
    assert len(open_store(url).cases) == 2
    assert "SMITH" in (tmp_path / "n.json").read_text()


def test_the_names_that_may_stand_in_a_text_are_those_of_a_search_for_all(tmp_path: Path) -> None:
    names = ["sub-0012", "P12", "Ann Lee", "Lee", "ann", "-x1-", "o'brien", "Ann Lee Moore", "2012"]
    people = {name: f"p{at}" for at, name in enumerate(names)}
    words = RealNames(people)
    texts = {
        "seen with Ann Lee Moore and ann-lee": "seen with p7 and p4-p3",
        "SUB-0012, once 0012": "p0, once p0",
        "P123 is not P12, nor is xP12": "P123 is not p1, nor is xP12",
        "O'Brien's -x1-": "p6's p5",
        "in 2012-01": "in p8-01",
        "brien": "brien",
    }
    assert {text: words.without(text) for text in texts} == texts
