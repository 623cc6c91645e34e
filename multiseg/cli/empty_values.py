"""Refuse an empty text as a path or a name.

A script passes one when a variable is not set. It would mean the current folder, or the newest run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

STORES = frozenset({"store", "of_store", "path"})
"""Parameters that are a path or a URL."""


def refuse_empty(command: click.Command) -> click.Command:
    """Make an empty path or argument a usage error of a command and all its subcommands; returns the command."""
    for parameter in command.params:
        is_path = isinstance(parameter.type, click.Path) or parameter.name in STORES
        if is_path or isinstance(parameter, click.Argument):
            setattr(parameter, "consume_value", partial(_consume, parameter, parameter.consume_value))  # noqa: B010
    for subcommand in getattr(command, "commands", {}).values():
        refuse_empty(subcommand)
    return command


Consume = Callable[[click.Context, Mapping[str, Any]], tuple[Any, click.core.ParameterSource]]


def _consume(
    parameter: click.Parameter, consume: Consume, ctx: click.Context, typed: Mapping[str, Any]
) -> tuple[Any, click.core.ParameterSource]:
    """Replaces the parameter's `consume_value`, which returns the value as it was typed.

    Raises:
        click.BadParameter: an empty text was typed.
    """
    value, source = consume(ctx, typed)
    is_empty = value == "" or (isinstance(value, list | tuple) and "" in value)
    if is_empty and source is click.core.ParameterSource.COMMANDLINE:
        raise click.BadParameter(
            "an empty text was given. Give a value (. is the current folder), or leave it out.", ctx, parameter
        )
    return value, source
