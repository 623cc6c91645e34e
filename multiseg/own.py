"""Code of one's own, named `module:name` as Python's entry points are: found, and named where it fails.

A module is imported as Python would import it: installed, or in a folder of PYTHONPATH. Importing runs it, so a name is
imported only where a person gave it, or where a model file that the person opens gives it (`models.builders`).
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from multiseg.errors import MultisegError, UsageError

_PART = r"(?!__)[A-Za-z_]\w*"
_NAME = re.compile(rf"({_PART}(?:\.{_PART})*):({_PART}(?:\.{_PART})*)")


def is_own(name: str) -> bool:
    """Whether a name is of the form `module:name`, which none of multiseg's own choices is."""
    return ":" in name


def imported(name: str, kind: str) -> Any:
    """What `module:name` stands for.

    Args:
        kind: what it should be, such as "network", for the message.

    Raises:
        UsageError: the name is not of that form or of Python's own library, the module is not there or fails, or it has
            no such name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"the {kind} {name!r} cannot be imported. Write module:name, such as mynet:Net; what is defined in a "
            "script, a notebook or a function has to be passed from Python."
        )
    module, attribute = match.groups()
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UsageError(f"{name!r} is part of Python itself, which has no {kind}.")
    try:
        found = _import(module, name, kind)
        return reduce(getattr, attribute.split("."), found)
    except AttributeError:
        raise UsageError(f"the module {module} has no {attribute}, which is named as {kind}: {name!r}.") from None


def _import(module: str, name: str, kind: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UsageError(f"the {kind} {name!r} cannot be imported: {error}.") from error
        raise UsageError(
            f"the {kind} {name!r} cannot be imported: there is no module {error.name!r}. Install it, or say in which "
            "folder it lies (the current one is not searched): PYTHONPATH=. multiseg ..."
        ) from error
    except (Exception, SystemExit) as error:  # a module may raise anything
        raise UsageError(f"the {kind} {name!r} cannot be imported: {_described(error)}.") from error


def name_of(thing: Any) -> str:
    """`module:name` of a class or function; of what is only made of one, with brackets and its arguments."""
    if isinstance(thing, partial):
        arguments = [*map(repr, thing.args), *(f"{key}={value!r}" for key, value in thing.keywords.items())]
        return f"{name_of(thing.func)}({', '.join(arguments)})"
    if not hasattr(thing, "__qualname__"):
        return f"{name_of(type(thing))}()"
    return f"{thing.__module__}:{thing.__qualname__}"


def is_importable(thing: Any) -> bool:
    """Whether importing its name gives this very thing, in this process and in another one."""
    try:
        return imported(name_of(thing), "object") is thing
    except UsageError:
        return False


def check_takes(thing: Any, num: int, kind: str, signature: str, name: str = "") -> None:
    """Whether something can be called with so many arguments by position.

    Raises:
        UsageError: it cannot.
    """
    name = name or (name_of(thing) if callable(thing) else repr(thing))
    if not callable(thing):
        raise UsageError(f"the {kind} {name} is a {type(thing).__name__}, which cannot be called: give {signature}.")
    try:
        inspect.signature(thing).bind(*range(num))
    except TypeError as error:
        raise UsageError(f"the {kind} {name} does not take {signature}: {error}.") from None
    except ValueError:
        return  # written in C, without a signature: the first call tells


@contextmanager
def blamed(kind: str, name: str) -> Iterator[None]:
    """Turn whatever somebody's own code raises into an error that names it, and the line.

    Memory of a card that ran out, and multiseg's own errors, pass as they are.

    Raises:
        UsageError: something was raised.
    """
    try:
        yield
    except (MultisegError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which this layer does not import
            raise
        raise UsageError(f"the {kind} {name} failed: {_described(error)}.") from error


def _described(error: BaseException) -> str:
    """An error in a line, with the place that it was raised at."""
    said = f"{type(error).__name__}: {error}".strip().rstrip(".:")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said


def digest_of(thing: Callable[..., Any]) -> str:
    """Of the file that something is defined in, so that a change to it is noticed; "" where there is no such file."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
    except TypeError:
        return ""
    if file is None or not Path(file).is_file():
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
