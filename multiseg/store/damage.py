"""Turning the exceptions that damaged bytes raise into errors that name the file."""

from __future__ import annotations

import struct
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from multiseg.errors import MultisegError, ResourceError, StoreError
from multiseg.faults import NO_DESCRIPTOR, NO_ROOM

DAMAGED = "DAMAGED"
"""The code of the error for a store that is damaged, or partly damaged."""
UNREADABLE = (
    ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, OSError,
    EOFError, MemoryError, struct.error,
)  # fmt: skip
"""What zarr, its codecs and our own readers raise when they read damaged bytes."""


@contextmanager
def reading(url: str, what: str, find: Callable[[], Sequence[tuple[str, str]]] = lambda: ()) -> Iterator[None]:
    """Wrap code that reads a part of a store.

    Args:
        what: the part, for the message: "database 'ms'".
        find: returns the damaged files, each with what is wrong with it.

    Raises:
        StoreError: with the code DAMAGED and the file, for any of UNREADABLE raised inside.
        ResourceError: this user may not read the store, or the machine has run out of something.
        MultisegError: one of our own errors passes through unchanged.
    """
    try:
        yield
    except MultisegError:
        raise
    except UNREADABLE as error:
        if isinstance(error, PermissionError):
            raise not_readable(url, error) from error
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTOR | NO_ROOM:  # the file is not to blame
            raise ResourceError(f"cannot read {what} of {url} now: {error}.") from error
        raise damaged(url, what, find() or [("", f"{type_and_place(error)}: {one_line(error)}")]) from error


@contextmanager
def naming_damage(url: str, find: Callable[[], Sequence[tuple[str, str]]]) -> Iterator[None]:
    """Wrap other work that also reads a store. If the store is damaged, the error names the files.

    Args:
        find: returns the damaged files of the whole store, each with what is wrong with it.

    Raises:
        StoreError: with the code DAMAGED and the first of the files. Without damaged files, the exception passes
            through unchanged.
    """
    try:
        yield
    except MultisegError:
        raise
    except UNREADABLE as error:
        files = find()
        if not files:
            raise
        raise damaged(url, "a part", files) from error


def damaged(url: str, what: str, files: Sequence[tuple[str, str]]) -> StoreError:
    """The error for a part of a store with these damaged files."""
    file, problem = files[0]
    place = f"{file}: " if file else ""
    more = f" (and {len(files) - 1} more files)" if len(files) > 1 else ""
    message = (
        f"{what} of {url} is damaged: {place}{problem.rstrip('.')}{more}. List all damage with: multiseg verify {url}; "
        f"then repair what can be repaired with: multiseg repair {url}."
    )
    return StoreError(message, code=DAMAGED, file=file)


def not_readable(url: str, error: OSError) -> ResourceError:
    """The error for a store on this computer that this user may not read."""
    return ResourceError(f"cannot read {url}: {error.filename or url}: {error.strerror}. Check its permissions.")


def one_line(error: BaseException) -> str:
    """An error's message on one line, or its type if the message is empty."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def type_and_place(error: BaseException) -> str:
    """An error's type, and the source line that raised it. Errors of other processes come without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    return f"{type(error).__name__} in {place}"
