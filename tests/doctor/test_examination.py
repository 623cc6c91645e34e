"""`multiseg doctor`: every check is made whatever happens to the others, and leaves nothing behind."""

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.doctor import examination, trials
from multiseg.doctor.check_record import ERROR, OK, WARNING, Check, Found
from multiseg.errors import StoreError
from multiseg.labels import LabelSchema


@pytest.fixture
def machine_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the checks of the machine, and the ones that ingest and stream."""
    monkeypatch.setattr(examination, "MACHINE", {"python": lambda: Found("3.14")})
    monkeypatch.setattr(trials, "TRIAL_BYTES", 1000)
    for name in ("disk", "ingest_phantoms", "stream_phantoms"):
        monkeypatch.setattr(trials, name, lambda folder: Found("fine"))


def examined(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the checks by name."""
    code = run(["doctor", *arguments, "--json"])
    result = checked(capsys.readouterr().out, "doctor")
    checks: list[dict[str, str]] = result["checks"]
    assert result["verdict"] == examination.worst(tuple(Check(**check) for check in checks))
    return code, {check["name"]: check for check in checks}


@pytest.mark.slow
def test_a_store_is_made_and_read_and_nothing_is_left(
    store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, checks = examined([store_url, "--folder", str(tmp_path)], capsys)
    assert code == 0
    assert [*checks][-5:] == ["disk", "write", "ingest", "stream", "store"]
    assert {name: check for name, check in checks.items() if check["verdict"] == ERROR} == {}
    assert checks["ingest"]["found"] == "2 synthetic patients written into a store, and verified"
    assert checks["stream"]["found"].startswith("16 patches of 16 x 16 x 16 voxels, FLAIR DWI ADC, in ")
    assert checks["store"]["found"].startswith("16 patches of 48 x 48 x 48 voxels, PD FLAIR T1 T1c T2 DWI ADC, in ")
    assert [*tmp_path.iterdir()] == []


def test_a_table_for_people(machine_is_fine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "This machine" in shown
    assert "3.14" in shown


def test_what_cannot_be_written_into(machine_is_fine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = examined(["--folder", str(tmp_path / "none")], capsys)
    assert code == 3
    assert checks["write"]["verdict"] == ERROR
    assert "--folder names another one" in checks["write"]["remedy"]
    assert checks["ingest"]["verdict"] == checks["stream"]["verdict"] == WARNING
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_not_there(machine_is_fine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = examined(["nowhere.zarr", "--folder", str(tmp_path)], capsys)
    assert code == 3
    assert checks["store"]["found"].startswith("there is no store at nowhere.zarr")
    assert "multiseg verify" in checks["store"]["remedy"]


def test_a_damaged_database_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SimpleNamespace(damaged={"cedar": StoreError("database 'cedar' is damaged")})
    monkeypatch.setattr("multiseg.store.reader.open_store", lambda url: store)
    with pytest.raises(StoreError, match="'cedar' is damaged"):
        trials.read_store("brain.zarr")


@pytest.mark.parametrize(
    ("error", "found", "advice"),
    [
        (StoreError("the store is bad."), "the store is bad.", "Do what the message says."),
        (OSError(errno.ENOSPC, "no room"), "[Errno 28] no room", "Free some disk space."),
        (ImportError("libcudart.so.12"), "ImportError: libcudart.so.12", "Repair what the message names"),
    ],
)
def test_a_check_that_fails_is_a_result(error: Exception, found: str, advice: str) -> None:
    def look() -> Found:
        raise error

    check = examination.checked("gpu", look)
    assert (check.name, check.found, check.verdict) == ("gpu", found, ERROR)
    assert check.remedy.startswith(advice)


@pytest.mark.parametrize(("gib", "verdict"), [(0.9, ERROR), (9.0, WARNING), (11.0, OK)])
def test_room_on_the_disk(gib: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials.shutil, "disk_usage", lambda folder: SimpleNamespace(free=gib * 2**30))
    found = trials.disk(tmp_path)
    assert found.verdict == verdict
    assert bool(found.remedy) == (verdict != OK)


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TRIAL_BYTES", 1000)
    assert trials.write(tmp_path).verdict == OK

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "b").mkdir()
    found = trials.write(tmp_path / "b")
    assert found.verdict == WARNING
    assert "lock files are used" in found.found


def test_a_disk_that_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TRIAL_BYTES", 1000)
    monkeypatch.setattr("multiseg.files.write_atomically", lambda path, data: path.write_bytes(os.urandom(len(data))))
    assert trials.write(tmp_path).verdict == ERROR


def test_other_patches_by_a_worker_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Stream:
        def __init__(self, store: Any, axis: Any, space: Any, options: Any) -> None:
            self.workers = options.workers

        def batches(self, first: int, num: int) -> list[Any]:
            return [SimpleNamespace(images=torch.ones(1) * self.workers, target=torch.ones(1))] * num

    database = SimpleNamespace(modalities=("T1",), schemas={})
    monkeypatch.setattr(
        "multiseg.store.reader.open_store", lambda url: SimpleNamespace(damaged={}, databases={"a": database})
    )
    monkeypatch.setattr(trials, "_space", lambda store: None)
    monkeypatch.setattr("multiseg.loaders.batches.PatchStream", Stream)
    found = trials.read_store("brain.zarr")
    assert found.verdict == ERROR
    assert "other patches" in found.found


def test_a_tissue_that_is_called_lesion_stands_beside_no_lesions() -> None:
    def store(*texts: str) -> Any:
        schemas = {f"annotation {index}": LabelSchema.parse(text, "lesion") for index, text in enumerate(texts)}
        return SimpleNamespace(databases={"wmh": SimpleNamespace(schemas=schemas)})

    tissues = "1=tissue:GM,2=tissue:lesion"
    assert trials._space(store("1=lesion", tissues)).names == ("lesion", "GM")
    assert trials._space(store(tissues)).names == ("GM", "lesion")
