"""An empty text in place of a path or a name, as of a script's variable that is not set: it would mean the current
folder, or the newest run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

STORES = frozenset({"store", "of_store", "path"})
"""Parameters that are a path or a URL."""


def refuse_empty(command: click.Command) -> click.Command:
    """The command, and all below it, such that an empty text is a usage error where a path or an argument is asked."""
    for parameter in command.params:
        is_path = isinstance(parameter.type, click.Path) or parameter.name in STORES
        if is_path or isinstance(parameter, click.Argument):
            setattr(parameter, "consume_value", partial(_consume, parameter, parameter.consume_value))  # noqa: B010
    for below in getattr(command, "commands", {}).values():
        refuse_empty(below)
    return command


Consume = Callable[[click.Context, Mapping[str, Any]], tuple[Any, click.core.ParameterSource]]


def _consume(
    parameter: click.Parameter, consume: Consume, ctx: click.Context, typed: Mapping[str, Any]
) -> tuple[Any, click.core.ParameterSource]:
    """In place of the parameter's own way to its value, which is then still as it was typed.

    Raises:
        click.BadParameter: it is empty, and somebody gave it so.
    """
    value, source = consume(ctx, typed)
    is_empty = value == "" or (isinstance(value, list | tuple) and "" in value)
    if is_empty and source is click.core.ParameterSource.COMMANDLINE:
        raise click.BadParameter(
            "an empty text was given. Name what is meant (. is the current folder), or leave it out.", ctx, parameter
        )
    return value, source
