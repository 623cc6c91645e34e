"""The table after an ingest: what each file was taken for, and how large brain and lesions came out."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.cli.case_table import named_files, print_cases
from multiseg.store.findings import Finding, Severity
from multiseg.store.ingest.case_reports import CaseReport
from multiseg.store.ingest.dry_run import check_source
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest

OPTIONS = IngestOptions(spacing_mm=(5.0, 5.0, 5.0))
CODES = ("--labels", "seg:1=necrosis,2=oedema,4=enhancing")


@pytest.fixture
def folder(hospitals: Path, tmp_path: Path) -> Path:
    shutil.copytree(hospitals / "birch", tmp_path / "birch")
    return tmp_path / "birch"


@pytest.mark.slow
def test_the_report_has_what_the_store_has(hospitals: Path, tmp_path: Path) -> None:
    alder, _, cedar, _ = find_manifest(hospitals / "manifest.toml")
    url = str(tmp_path / "s.zarr")
    reports = ingest([alder, cedar], url, OPTIONS)
    store = open_store(url)
    for report in reports:
        database = store[report.database]
        assert [case.case for case in report.cases] == [case.name for case in database.cases]
        for case, row in zip(report.cases, database.cases, strict=True):
            assert case.outcome == "written"
            brain = (np.asarray(database.group["image"][row.row]) != 0).any(axis=0)
            # A voxel of the brain may be 0 by chance, in one sequence.
            assert case.brain_ml == pytest.approx(brain.sum() * 0.125, rel=1e-3)
            (schema,) = [labels for name, labels in database.schemas.items() if name == "lesion"]
            at = [one.kind for one in schema.structures]
            count = sum(int(n) for n, kind in zip(row.foreground_count[0], at, strict=False) if kind == "lesion")
            assert case.lesions_ml["lesion"] == pytest.approx(count * 0.125)
            assert set(case.files) == {*row.modalities, *(f"label:{name}" for name in database.schemas)}
            assert all(case.case in file for file in case.files.values())
    again = ingest([alder], url, OPTIONS)[0]
    assert [(case.outcome, np.isnan(case.brain_ml)) for case in again.cases] == [("skipped", True)] * 4
    doubt = Finding(Severity.WARNING, "DOUBT", "alder", alder.cases[0].case, "", "a doubt is no failure.")
    checked = check_source(replace(alder, findings=(doubt,)), OPTIONS).cases
    assert [(case.outcome, case.brain_ml) for case in checked] == [
        ("checked", case.brain_ml) for case in reports[0].cases
    ]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["ingest", "rehearse", "verify"])
def test_every_verb_shows_the_table(
    verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "B002" / "t1.nii.gz").write_bytes(b"no NIfTI")
    arguments = {
        "ingest": ["ingest", "--store", str(folder.parent / "s.zarr")],
        "rehearse": ["ingest", "--dry-run", "--store", str(folder.parent / "s.zarr")],
        "verify": ["verify"],
    }[verb]
    run([*arguments, str(folder), *CODES, "--spacing", "5"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: row for row in rows if len(row) == 5 and row[0].startswith("B0")}
    assert set(table) == {"B001", "B002", "B003", "B004"}
    assert table["B002"][1:] == ["flair.nii.gz = FLAIR", "-", "-", "NOT_NIFTI"]
    assert ["", "t1.nii.gz = T1", "", "", ""] in rows
    if verb != "rehearse":
        assert 0.2 < float(table["B001"][2]) < 3
        assert float(table["B001"][3]) > 0
    assert ["", "seg.nii.gz = label seg", "", "", ""] in rows


@pytest.mark.slow
def test_json_has_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["ingest", str(folder), *CODES, "--store", str(folder.parent / "s.zarr"), "--spacing", "5", "--json"])
    cases = checked(capsys.readouterr().out, "ingest")[0]["cases"]
    assert [case["case"] for case in cases] == ["B001", "B002", "B003", "B004"]
    assert cases[0]["files"]["T1"] == "B001/t1.nii.gz"
    assert cases[0]["lesions_ml"]["seg"] > 0


def reports(num: int, doubtful: int) -> list[CaseReport]:
    return [
        CaseReport(
            "db", f"case{n:03}", "written", {"T1": f"case{n:03}/T1.nii.gz"}, 1400.0, {"lesion": 3.21},
            ("BRAIN_SIZE",) if n >= num - doubtful else (), n >= num - doubtful,
        )
        for n in range(num)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("num", "doubtful", "shown", "said"),
    [
        (20, 3, 20, ""),
        (300, 5, 25, "275 more cases are not shown, 0 of them"),
        (300, 100, 60, "240 more cases are not shown, 60 of them"),
    ],
)
def test_of_many_cases_the_doubtful_and_the_first_are_shown(
    num: int, doubtful: int, shown: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_cases(reports(num, doubtful))
    out = capsys.readouterr()
    assert out.out.count("case") == shown + 1  # and the head of the column
    assert said in out.err
    assert out.out.count("BRAIN_SIZE") == min(doubtful, 40)
    assert "1.40 │" in out.out
    assert "3.2 │" in out.out


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    import multiseg.cli.console as console

    monkeypatch.setattr(console, "output", lambda: Console(width=width))
    long = {
        role: f"sub-{'0' * 30}1/sub-{'0' * 30}1_ses-1_{role.replace(':', '-')}.nii.gz"
        for role in ("T1", "T2", "label:lesion")
    }
    print_cases(
        [CaseReport("db", f"sub-{'0' * 30}1", "written", long, 1234.0, {"a": 1.0, "b": 2.0}, ("BRAIN_TOUCHES",))]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any("T1.nii.gz = T1" in line for line in lines)
    assert any("BRAIN_TOUCHES" in line for line in lines)


def test_names_are_shortened_between_words() -> None:
    names = {"T1": "sub-1/anat/sub-1_T1w.nii.gz", "T2": "sub-1/anat/sub-1_T2w.nii.gz"}
    assert named_files(names) == ["...T1w.nii.gz = T1", "...T2w.nii.gz = T2"]
    assert named_files({"T1": "p/T1.nii.gz", "label:wmh": "p/TL.nii.gz"}) == ["T1.nii.gz = T1", "TL.nii.gz = label wmh"]
    assert named_files({"FLAIR": "a/b/scan.mha"}) == ["scan.mha = FLAIR"]
    apart = {"DWI": "raw/sub-1_dwi.nii.gz", "label:lesion": "derivatives/sub-1_msk.nii.gz"}
    assert named_files(apart) == ["...dwi.nii.gz = DWI", "...msk.nii.gz = label lesion"]
    assert named_files({"T1": "a/x.nii", "brain_mask": "b/x.nii"}) == ["a/x.nii = T1", "b/x.nii = brain mask"]
    assert named_files({}) == []
