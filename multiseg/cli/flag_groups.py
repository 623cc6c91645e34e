"""Groups of flags as dataclasses: if a command takes one as a parameter, each of its fields is a flag."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def with_single_flags(command: Callable[..., int]) -> Callable[..., int]:
    """The command as typer can read it: every dataclass parameter is replaced by a parameter for each of its fields."""
    signature = inspect.signature(command, eval_str=True)
    types = {name: flag.annotation for name, flag in signature.parameters.items() if isinstance(flag.annotation, type)}
    groups = {name: group for name, group in types.items() if is_dataclass(group)}
    flags: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        # Keyword-only, since an argument without a default may follow flags with defaults.
        flags += _flags_of(groups[name]) if name in groups else [parameter.replace(kind=parameter.KEYWORD_ONLY)]

    @wraps(command)
    def run(**values: Any) -> int:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return command(**values)

    run.__signature__ = signature.replace(parameters=flags)  # type: ignore[attr-defined]
    run.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return run


def _flags_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]
