"""Import users' own code, named `module:name` like Python's entry points, and name it in errors.

A module is imported as Python does: it is installed, or in a folder of PYTHONPATH. Importing runs it, so a name is
imported only if it comes from the user, or from a model file that the user opens (`models.builders`).
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
    """Whether a name has the form `module:name` of users' own code, which no built-in choice has."""
    return ":" in name


def imported(name: str, kind: str) -> Any:
    """Import `module:name`.

    Args:
        kind: what it should be, such as "network", for messages.

    Raises:
        UsageError: the name is malformed or of Python's standard library, the module is missing or fails, or it does
            not have the name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"cannot import the {kind} {name!r}. Write module:name, such as mynet:Net; pass what is defined in a "
            "script, a notebook or a function from Python."
        )
    module, attribute = match.groups()
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UsageError(f"{name!r} is in Python's standard library, which has no {kind}.")
    try:
        return reduce(getattr, attribute.split("."), _import(module, name, kind))
    except AttributeError:
        raise UsageError(f"the module {module} has no {attribute}, needed for the {kind} {name!r}.") from None


def _import(module: str, name: str, kind: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UsageError(f"cannot import the {kind} {name!r}: {error}.") from error
        raise UsageError(
            f"cannot import the {kind} {name!r}: there is no module {error.name!r}. Install it, or give its folder "
            "(the current one is not searched): PYTHONPATH=. multiseg ..."
        ) from error
    except (Exception, SystemExit) as error:  # a module may raise anything
        raise UsageError(f"cannot import the {kind} {name!r}: {_described(error)}.") from error


def name_of(thing: Any) -> str:
    """`module:name` of a class or function; for an instance or a partial, with brackets and its arguments."""
    if isinstance(thing, partial):
        arguments = [*map(repr, thing.args), *(f"{key}={value!r}" for key, value in thing.keywords.items())]
        return f"{name_of(thing.func)}({', '.join(arguments)})"
    if not hasattr(thing, "__qualname__"):
        return f"{name_of(type(thing))}()"
    return f"{thing.__module__}:{thing.__qualname__}"


def is_importable(thing: Any) -> bool:
    """Whether importing its name gives the same object, so that other processes can import it."""
    try:
        return imported(name_of(thing), "object") is thing
    except UsageError:
        return False


def check_takes(thing: Any, num: int, kind: str, signature: str, name: str = "") -> None:
    """Check that an object can be called with `num` positional arguments.

    Raises:
        UsageError: it cannot.
    """
    name = name or (name_of(thing) if callable(thing) else repr(thing))
    if not callable(thing):
        raise UsageError(f"the {kind} {name} is a {type(thing).__name__}, which is not callable. Give {signature}.")
    try:
        inspect.signature(thing).bind(*range(num))
    except TypeError as error:
        raise UsageError(f"the {kind} {name} does not take {signature}: {error}.") from None
    except ValueError:
        return  # written in C, without a signature: the first call will show


@contextmanager
def blamed(kind: str, name: str) -> Iterator[None]:
    """Turn any exception of users' own code into an error that names the code and the line.

    Errors of multiseg and out-of-memory errors pass unchanged.

    Raises:
        UsageError: the code raised an exception.
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
    """An error in one line, with the file and line that raised it."""
    text = f"{type(error).__name__}: {error}".strip().rstrip(".:")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def digest_of(thing: Callable[..., Any]) -> str:
    """The SHA-256 of the file that defines an object, to notice changes; "" if there is no such file."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
    except TypeError:
        return ""
    if file is None or not Path(file).is_file():
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
