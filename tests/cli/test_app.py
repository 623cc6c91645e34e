"""The command as a whole: help, versions, exit codes, and what it imports."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from multiseg.cli.app import COMMANDS, run


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_help_with_an_example_and_a_line_in_the_readme(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"multiseg {verb}" in shown.split("Example", 1)[1]
    assert f"multiseg {verb}" in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_argument_and_option_says_what_it_is(verb: str) -> None:
    import typer.main

    from multiseg.cli.app import build_app

    command = typer.main.get_command(build_app()).commands[verb]  # type: ignore[attr-defined]
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


def test_no_help_loses_a_word_in_brackets() -> None:
    """Help is rich markup, in which "[augment]" is an unknown style and is not shown: it is written "\\[augment]"."""
    import typer.main
    from rich.text import Text

    from multiseg.cli.app import build_app

    texts, commands = [], {"multiseg": typer.main.get_command(build_app())}
    while commands:
        name, command = commands.popitem()
        texts += [(name, getattr(one, "help", None) or "") for one in (command, *command.params)]
        commands |= {f"{name} {below}": one for below, one in getattr(command, "commands", {}).items()}
    assert len({name for name, _ in texts}) > len(COMMANDS) + 13
    lost = [(name, text) for name, text in texts if Text.from_markup(text).plain != text.replace("\\[", "[")]
    assert lost == []


HEAVY = "torch zarr xarray nibabel scipy pandas numpy flwr matplotlib pydantic SimpleITK dask"
HELP = f"""
import contextlib, io, sys
from multiseg.cli.app import COMMANDS, build_app, run
from typer.main import get_command

with contextlib.redirect_stdout(io.StringIO()):
    assert run(["remove", "--help"]) == 0
assert "multiseg.cli.train" not in sys.modules  # it is built without the others
below = get_command(build_app("fed")).commands["fed"].commands
loaded = {{}}
for arguments in [[], *([name] for name in COMMANDS), *(["fed", name] for name in below), ["fed", "enrol", "site"]]:
    with contextlib.redirect_stdout(io.StringIO()):
        assert run([*arguments, "--help"]) == 0
    if found := set("{HEAVY}".split()) & set(sys.modules) - {{name for names in loaded.values() for name in names}}:
        loaded[" ".join(arguments)] = found
print(len(below), loaded)
"""


@pytest.mark.slow
def test_no_help_imports_anything_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, encoding="utf-8", check=True)
    num_below, loaded = done.stdout.strip().split(" ", 1)
    assert loaded == "{}"
    assert int(num_below) >= 13


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("multiseg 0.")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["segment"], 2, "No such command 'segment'"),
        (["info"], 2, "Missing argument"),
        (["info", "nowhere.zarr"], 3, "there is no store at nowhere.zarr"),
        (["train"], 2, "name the store to train on"),
        (["train", "brain.zarr"], 2, "--out runs/NAME"),
        (["train", "nowhere.zarr", "--out", "run"], 3, "there is no store at"),
        (["train", "brain.zarr", "--out", "run", "--device", "cuda:7"], 2, "device 'cuda:7' does not exist"),
        (["train", "--run", "none.toml"], 2, "there is no file none.toml"),
        (["evaluate", "nowhere"], 3, "there is no model at nowhere"),
        (["predict", "nowhere", "FLAIR=a.nii.gz", "-o", "b.nii.gz"], 3, "there is no model at nowhere"),
        (["predict", "nowhere", "scan.nii.gz", "-o", "b.nii.gz"], 3, "does not show which sequence it is"),
        (["predict", "nowhere", "T1=a.nii", "t1w.nii", "-o", "b.nii"], 3, "are both T1"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_exit_code(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["infoo"], "'info'"),
        (["trian", "brain.zarr"], "'train'"),
        (["fed", "statsu", "centre"], "'status'"),
        (["fed", "enrol", "sever"], "'server'"),
        (["info", "--jsno", "brain.zarr"], "'--json'"),
        (["train", "--devise", "cpu"], "'--device'"),
        (["fed", "simulate", "--stroe", "a.zarr"], "'--store'"),
    ],
)
def test_a_misspelt_name_suggests_each_name_once(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.count("Did you mean") == 1
    assert shown.partition("Did you mean")[2].count(meant) == 1


def test_a_bug_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(url: str) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("multiseg.store.reader.open_store", broken)
    assert run(["info", "brain.zarr"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "This is a bug in multiseg" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3\n", "unknown settings ['steps'] in the file"),
        ("[fit]\nsteps = 3\n", "unknown settings ['steps'] in [fit]"),
        ("[stream.draw]\npatches = 3\n", "unknown settings ['patches'] in [stream.draw]"),
        ('[fit]\nnum_steps = "many"\n', "fit.num_steps: Input should be a valid integer"),
        ("fit = 3\n", "fit must be a table of settings"),
        ("[fit\n", "is not valid TOML"),
    ],
)
def test_a_run_file_with_a_mistake_names_it(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert run(["train", "brain.zarr", "--run", str(tmp_path / "run.toml"), "--print-config"]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_command_says_that_it_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(url: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multiseg.store.reader.open_store", interrupted)
    assert run(["info", "brain.zarr"]) == 130
    assert "to resume, run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 5), (errno.ENOSPC, 5), (errno.EINVAL, 1)])
def test_a_place_that_cannot_be_written_is_no_bug_of_ours(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(url: str) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr("multiseg.store.reader.open_store", refused)
    assert run(["info", "brain.zarr"]) == code
    assert ("bug in multiseg" in capsys.readouterr().err) == (code == 1)
