"""On a terminal every long verb shows how far it is and how long it will still take, on stderr alone."""

import json
import re
import shutil
from pathlib import Path

import pytest

from multiseg.cli.app import run
from multiseg.cli.console import case_counter
from multiseg.errors import DataError
from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.upkeep.removal import remove

VERBS = {
    "phantoms": (["phantoms", "{folder}/more", "--cases", "2", "--coarseness", "6", "--hospital", "dogwood"], 2),
    "dry run": (["ingest", "{folder}/hospitals/manifest.toml", "--store", "{folder}/new.zarr", "--dry-run"], 3),
    "verify": (["verify", "{store}"], 3),
    "repair": (["repair", "{store}"], 6),
    "remove": (["remove", "{store}", "dogwood/D002", "--yes"], 1),
    "compact": (["compact", "{store}"], 1),
    "view": (["view", "{store}", "--png", "{folder}/pictures", "--rows", "1"], 1),
}
"""By the name at the bar, a verb and its number of steps. `store` has three rows, of which one is not in use."""
SLOW = ("dry run", "view", "repair")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital of three cases, and a store of it from which one was removed."""
    folder = tmp_path_factory.mktemp("progress")
    manifest = write_hospitals(folder / "hospitals", num_cases=3, coarseness=6.0, names=["dogwood"])
    url = str(folder / "brain.zarr")
    ingest(find_manifest(manifest), url, IngestOptions(spacing_mm=(10.0, 10.0, 10.0)))
    remove(url, ["dogwood/D001"])
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder; a terminal is wide enough for all of a bar."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return shutil.copytree(folder, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in VERBS])
def test_long_verbs_show_how_far_they_are(
    name: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # how rich is told of a terminal
    verb, num_steps = VERBS[name]
    assert run([*(part.format(folder=copy, store=copy / "brain.zarr") for part in verb), "--json"]) == 0
    shown = capsys.readouterr()
    json.loads(shown.out)
    *_, last = re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", shown.err).strip().rpartition(name)
    assert re.match(rf".* {num_steps}/{num_steps} .*\d:\d\d:\d\d \d:\d\d:\d\d$", last), shown.err


def test_no_bar_stays_where_nothing_was_to_do(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert run(["upgrade", str(copy / "brain.zarr")]) == 0
    *_, last = capsys.readouterr().err.rpartition("\x1b[2K")  # what is written after the last line that was deleted
    assert "has the newest format" in last
    assert "upgrade" not in last


def test_no_bar_stays_where_an_error_comes_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(DataError), case_counter("upgrade"):
        raise DataError("damaged.")
    *_, last = capsys.readouterr().err.rpartition("\x1b[2K")
    assert "upgrade" not in last


def test_without_a_terminal_there_is_no_bar(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    assert run(["compact", str(copy / "brain.zarr"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["dry_run"] is False
    assert not shown.err
