"""What is raised over bytes that are not what they should be, turned into an error that names the file."""

from __future__ import annotations

import errno
import struct
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from multiseg.errors import MultisegError, ResourceError, StoreError

DAMAGED = "DAMAGED"
"""The code of the error for a store, or a part of it, that cannot be read as it is."""
UNREADABLE = (
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    OSError,
    EOFError,
    MemoryError,
    struct.error,
)
"""What zarr, its codecs and our own readers raise at bytes that are not what they should be."""
NOT_DAMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)
"""What the machine lacks, and no file is to blame for."""


@contextmanager
def reading(url: str, what: str, find: Callable[[], Sequence[tuple[str, str]]] = lambda: ()) -> Iterator[None]:
    """Around everything that reads a part of a store.

    Args:
        what: the part, for the message: "database 'ms'".
        find: looks for the damaged files; each with what is wrong with it.

    Raises:
        StoreError: with the code DAMAGED and the file, whatever was raised inside.
        ResourceError: the place cannot be read by this user, or the machine lacks something.
        MultisegError: what was raised inside on purpose stays as it is.
    """
    try:
        yield
    except MultisegError:
        raise
    except UNREADABLE as error:
        if isinstance(error, PermissionError):
            raise not_readable(url, error) from error
        if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
            raise ResourceError(f"{what} of {url} cannot be read now: {error}.") from error
        raise damaged(url, what, find() or [("", _kind_and_place(error))]) from error


@contextmanager
def naming_damage(url: str, find: Callable[[], Sequence[tuple[str, str]]]) -> Iterator[None]:
    """Around work with a store that reads some of it: an error over damaged bytes names the files, any other stays.

    Args:
        find: looks for the damaged files of the whole store; each with what is wrong with it.

    Raises:
        StoreError: with the code DAMAGED and the first of the files.
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
    file, said = files[0]
    more = f" (and {len(files) - 1} more files)" if len(files) > 1 else ""
    return StoreError(
        f"{what} of {url} is damaged: {f'{file}: ' if file else ''}{said.rstrip('.')}{more}. See all that is damaged "
        f"with: multiseg verify {url}; and rebuild what can be rebuilt with: multiseg repair {url}.",
        code=DAMAGED,
        file=file,
    )


def not_readable(url: str, error: OSError) -> ResourceError:
    """The error for a store on this computer that this user may not read."""
    return ResourceError(f"{url} cannot be read: {error.filename or url}: {error.strerror}. Check its permissions.")


def one_line(error: BaseException) -> str:
    """What an error says, or its kind when it says nothing."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _kind_and_place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {one_line(error)}"
