"""Before anything is written: what an ingest would do, and what is wrong with a source."""

import shutil
from pathlib import Path

import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.store.reader import open_store


@pytest.fixture
def folder(hospitals: Path, tmp_path: Path) -> Path:
    """A copy of one hospital's folder, to damage."""
    shutil.copytree(hospitals / "birch", tmp_path / "birch")
    return tmp_path / "birch"


CODES = ("--labels", "seg:1=necrosis,2=oedema,4=enhancing")


def rehearse(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    capsys.readouterr()
    code = run(["ingest", *map(str, arguments), "--spacing", "5", "--dry-run", "--json"])
    return code, checked(capsys.readouterr().out, "ingest")[0]


def test_a_rehearsal_writes_nothing_and_comes_true(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = folder.parent / "brain.zarr"
    code, forecast = rehearse(capsys, folder, *CODES, "--store", store)
    assert code == 0
    assert not store.exists()
    assert forecast["new"] == ["B001", "B002", "B003", "B004"]
    assert sum(forecast["splits"].values()) == 4
    assert forecast["seconds"] > 0
    assert run(["ingest", str(folder), *CODES, "--store", str(store), "--spacing", "5"]) == 0
    database = open_store(str(store))["birch"]
    shards = [
        path for name in ("image", "label") for path in (store / "birch" / name / "c").rglob("*") if path.is_file()
    ]
    assert sum(path.stat().st_size for path in shards) == pytest.approx(forecast["stored_bytes"], rel=0.3)
    splits = {split: sum(case.split == split for case in database.cases) for split in forecast["splits"]}
    assert splits == forecast["splits"]
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    code, again = rehearse(capsys, folder, *CODES, "--store", store)
    assert (again["same"], again["new"], again["stored_bytes"]) == (["B001", "B002", "B003", "B004"], [], 0)
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*")}


def test_a_rehearsal_finds_what_headers_tell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "B002" / "t1.nii.gz").write_bytes(b"no NIfTI")
    code, forecast = rehearse(capsys, folder, *CODES, "--store", folder.parent / "brain.zarr")
    assert code == 4
    assert forecast["failed"] == ["B002"]
    assert [finding["case"] for finding in forecast["findings"] if finding["severity"] == "error"] == ["B002"]


@pytest.mark.slow
def test_a_rehearsal_on_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", str(folder), *CODES, "--store", "none.zarr", "--dry-run", "--spacing", "5"]) == 0
    said = capsys.readouterr().out
    assert "none.zarr is not changed" in said
    assert "GB per case" in said


@pytest.mark.slow
def test_a_source_is_verified_to_the_last_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(folder), *CODES, "--spacing", "5"]) == 0
    damaged = folder / "B003" / "flair.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    shutil.copy(folder / "B001" / "t2.nii.gz", folder / "B004" / "t2.nii.gz")
    capsys.readouterr()
    assert run(["verify", str(folder), *CODES, "--spacing", "5", "--json"]) == 3
    findings = checked(capsys.readouterr().out, "verify")["findings"]
    told = {(finding["severity"], finding["code"], finding["case"]) for finding in findings}
    assert {("error", "DAMAGED_FILE", "B003"), ("warning", "DUPLICATE_SCAN", "B004")} <= told
    assert sorted(path.name for path in folder.parent.iterdir()) == ["birch"]


@pytest.mark.slow
def test_a_manifest_is_verified(hospitals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(hospitals / "manifest.toml"), "--spacing", "5"]) == 0
    assert "NO_BACKGROUND" not in capsys.readouterr().out


def test_what_is_neither_store_nor_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(tmp_path / "none.zarr")]) == 2
    assert "there is no store or source at" in capsys.readouterr().err
