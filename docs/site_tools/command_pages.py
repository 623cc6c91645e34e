"""A page for each command, made from what its --help is made from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
from typer.main import get_command

from multiseg.cli.app import build_app

FIRST = "reference/commands/index.md"


def command_pages() -> dict[str, str]:
    """Pages by their place in the site, that with all commands first."""
    root = get_command(build_app())
    commands = dict(_commands(root, "multiseg"))
    rows = [f"| [`{name}`]({_file(name)}) | {_sentence(command)} |" for name, command in commands.items()]
    table = "\n".join(["| command | what it does |", "|---|---|", *rows])
    index = f"# Commands\n\n{root.help}\n\n{table}\n\n{(root.epilog or '').strip()}\n"
    pages = {f"reference/commands/{_file(name)}": _page(name, command) for name, command in commands.items()}
    return {FIRST: index, **pages}


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """All commands that do something, with their full names."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for short, sub in command.commands.items():
        yield from _commands(sub, f"{name} {short}")


def _file(name: str) -> str:
    return f"{name.removeprefix('multiseg ').replace(' ', '-')}.md"


def _sentence(command: click.Command) -> str:
    """The first sentence of the help."""
    return " ".join(inspect.cleandoc(command.help or "").partition("\n\n")[0].split())


def _page(name: str, command: click.Command) -> str:
    text, *examples = re.split(r"^Examples?:\n", inspect.cleandoc(command.help or ""), maxsplit=1, flags=re.MULTILINE)
    lines = "\n".join(line for line in "".join(examples).splitlines() if line.strip())
    context = click.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"# {name}", text.strip(), f"```\n{name} {usage}\n```"]
    parts += ["## Examples", f"```\n{lines}\n```"] if lines else []
    arguments = [_row(one, context) for one in command.params if isinstance(one, click.Argument)]
    options = [_row(one, context) for one in command.params if isinstance(one, click.Option) and not one.hidden]
    for title, rows in (("Arguments", arguments), ("Options", options)):
        if rows:
            parts.append(f"## {title}\n\n| | default | meaning |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _row(parameter: click.Parameter, context: click.Context) -> str:
    names = parameter.opts if isinstance(parameter, click.Option) else [parameter.make_metavar(context)]
    kind = (
        ""
        if isinstance(parameter, click.Argument) or getattr(parameter, "is_flag", False)
        else _kind(parameter, context)
    )
    default = _default(parameter.default)
    shown = ", ".join(f"`{name}`" for name in names) + (f" {kind}" if kind else "")
    return f"| {_cell(shown)} | {_cell(default)} | {_cell(getattr(parameter, 'help', '') or '')} |"


def _kind(parameter: click.Parameter, context: click.Context) -> str:
    return parameter.make_metavar(context).lower()


def _default(value: Any) -> str:
    is_said = value not in (None, "", False, (), []) and not callable(value) and "Sentinel" not in type(value).__name__
    return f"`{value}`" if is_said else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
