"""`multiseg fed`: hospitals train one model together, and their data stays where it is."""

from __future__ import annotations

from collections.abc import Callable

import typer

federation_app = typer.Typer(
    name="fed",
    help="Train one model across hospitals; their data stays where it is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS: dict[str, Callable[..., int]] = {}
for name, command in COMMANDS.items():
    federation_app.command(name)(command)
