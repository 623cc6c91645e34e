"""An empty text in place of a path or of an argument is a usage error, and nothing is made in the current folder."""

from pathlib import Path

import click
import pytest
from test_outputs import commands
from typer.main import get_command

from multiseg.cli.app import build_app, run


def every(command: click.Command, name: str = "") -> list[tuple[str, click.Command]]:
    below = getattr(command, "commands", None)
    if below is None:
        return [(name.strip(), command)]
    return [one for word, part in below.items() for one in every(part, f"{name} {word}")]


def lines_with_one_empty() -> list[list[str]]:
    """For each path and each argument of every verb a command line in which that is empty and the others are not."""
    found = []
    for name, command in every(get_command(build_app())):
        needed = [one for one in command.params if isinstance(one, click.Argument) and one.required]
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                before = needed[: needed.index(parameter)] if parameter in needed else needed
                found.append([*name.split(), *("x" for _ in before), ""])
            elif isinstance(parameter.type, click.Path) or parameter.name == "store":
                found.append([*name.split(), *("x" for _ in needed), max(parameter.opts, key=len), ""])
    return found


LINES = lines_with_one_empty()


def test_every_verb_is_among_them() -> None:
    assert len(LINES) > 50
    assert {line[-3] if line[-2].startswith("-") else line[0] for line in LINES} <= {
        "x",
        *(n for n, _ in commands()),
        "fed",
    }


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_an_empty_text_is_refused(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(line) == 2
    assert "an empty text was given" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [["fed", "enrol", "server", "{}", "--host", "fed.example.org"], ["phantoms", "{}"], ["fed", "app", "-o", "{}.fab"]],
    ids=lambda line: line[1],
)
def test_a_place_where_nothing_can_be_made_is_said(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([word.format("/proc/x") for word in line]) == 5
    assert "cannot write into /proc" in capsys.readouterr().err
