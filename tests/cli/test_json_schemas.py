"""Every command with --json has a schema in docs/schemas, what it prints fits, and so do its errors."""

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import jsonschema
import pytest
import torch
from json_documents import SCHEMAS, checked
from typer.main import get_command

from multiseg.cli.app import build_app, run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import BEST, ModelInfo, save_model

OTHERS = {"error", "guesses"}
"""Schemas of what no command prints when all goes well."""


def commands_with_json(command: click.Command, name: str = "") -> Iterator[str]:
    """The names of the schemas that a command and its subcommands need, such as fed-status of `fed status`."""
    for part, subcommand in getattr(command, "commands", {}).items():
        yield from commands_with_json(subcommand, f"{name}-{part}" if name else part)
    if any("--json" in parameter.opts for parameter in command.params):
        yield name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with the voxels of the shared store, which nobody trained."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    axis, numbers = ModalityAxis(("FLAIR", "T1")), {"widths": [2, 3], "dropout": 0.0}
    info = ModelInfo(
        "multi_unet", numbers, axis, LabelSpace(), (5.0, 5.0, 5.0), (16, 16, 16), dict.fromkeys(axis, ("cedar",)), {}
    )
    save_model(folder / BEST, build("multi_unet", 2, 1, **numbers), info)
    return folder


def test_every_command_with_json_has_a_schema() -> None:
    names = set(commands_with_json(get_command(build_app())))
    assert {"ingest", "import-weights", "fed-status"} <= names
    assert names | OTHERS == {path.stem for path in SCHEMAS.glob("*.json")}


def test_some_output_is_held_against_every_schema() -> None:
    tests = Path(__file__).parents[1]
    called = re.compile(r'\bchecked\([^"\n]*, "([a-z-]+)"\)')
    found = {name for path in tests.rglob("test_*.py") for name in called.findall(path.read_text(encoding="utf-8"))}
    assert {path.stem for path in SCHEMAS.glob("*.json")} - found == set()


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_every_schema_is_one(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not jsonschema.Draft202012Validator(schema).is_valid({})
    assert not jsonschema.Draft202012Validator(schema).is_valid([{}])
    assert f"[{path.stem}](schemas/{path.name})" in (SCHEMAS.parent / "json.md").read_text(encoding="utf-8")


def test_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(tmp_path / "none.multiseg"), "--json"]) == 3
    assert "none.multiseg" in checked(capsys.readouterr().out, "error")["message"]


@pytest.mark.parametrize("arguments", [["info"], ["info", "x.zarr", "--nonsense"], ["no-such-verb"]])
def test_an_error_of_the_command_line_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "--json"]) == 2
    assert checked(capsys.readouterr().out, "error")["error"] == "UsageError"


@pytest.mark.parametrize(
    ("fault", "code"), [(MemoryError(), 5), (OSError(errno.ENOSPC, "no space left"), 5), (RuntimeError("?"), 1)]
)
def test_an_error_of_the_machine_and_a_bug(
    fault: Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*arguments: object) -> None:
        raise fault

    monkeypatch.setattr("multiseg.store.upkeep.removal.compact", failing)
    assert run(["compact", str(tmp_path), "--json"]) == code
    assert checked(capsys.readouterr().out, "error")["error"] == type(fault).__name__


def test_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["phantoms", str(tmp_path), "--cases", "1", "--coarseness", "8", "--hospital", "birch", "--json"]) == 0
    assert Path(checked(capsys.readouterr().out, "phantoms")["manifest"]).is_file()


@pytest.mark.slow
def test_verbs_that_keep_a_store(store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["remove", store_url, "birch/B001", "--dry-run", "--json"]) == 0
    assert checked(capsys.readouterr().out, "remove")["removed"] == [
        {"database": "birch", "case": "B001", "versions": 1}
    ]
    assert run(["compact", store_url, "--dry-run", "--json"]) == 0
    assert checked(capsys.readouterr().out, "compact")["dry_run"]
    command = ["view", store_url, "--case", "birch/B001", "--png", str(tmp_path), "--json"]
    assert run(command) == 0
    assert checked(capsys.readouterr().out, "view")["pictures"] == [str(tmp_path / "birch-B001.png")]


@pytest.mark.slow
def test_info(model: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", store_url, "--cases", "--json"]) == 0
    assert len(checked(capsys.readouterr().out, "info")["databases"]) == 4
    for flags in ([], ["--store", store_url]):
        assert run(["info", str(model / BEST), *flags, "--json"]) == 0
        assert checked(capsys.readouterr().out, "info")["sequences"] == ["FLAIR", "T1"]


@pytest.mark.slow
def test_predict(model: Path, hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flair = next((hospitals / "cedar").glob("*_flair.nii.gz"))
    command = ["predict", str(model), f"FLAIR={flair}", "-o", str(tmp_path / "a.nii.gz"), "--device", "cpu", "--json"]
    assert run(command) == 0
    assert checked(capsys.readouterr().out, "predict")["used"] == ["FLAIR"]
    assert run(command) == 2
    checked(capsys.readouterr().out, "error")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_evaluate(model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluation"
    command = ["evaluate", str(model), "--store", store_url, "--subsets", "full", "--database", "cedar"]
    assert run([*command, "--out", str(out), "--device", "cpu", "--json"]) == 0
    assert checked(capsys.readouterr().out, "evaluate")["folder"] == str(out)
    written = checked((out / "summary.json").read_text(encoding="utf-8"), "evaluate")
    assert written["summary"][0]["database"] == "cedar"
