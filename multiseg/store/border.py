"""The one place where any exception from reading a case's files becomes an error of that case.

Headers are read when a folder is recognised, when memory is estimated and when a case is prepared. A damaged header
can make any library raise anything, and one bad file must not stop the run for all the others. So all of this reading
happens inside `one_file`, whose error names the file, or inside `one_case`, whose error names the case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multiseg.errors import MultisegError, ResourceError, SourceError
from multiseg.faults import NO_DESCRIPTOR, NO_ROOM, remedy
from multiseg.store.damage import type_and_place

UNREADABLE = "UNREADABLE"
"""The code of unexpected errors."""


@contextmanager
def one_file(path: Path) -> Iterator[None]:
    """Wrap code that reads one file.

    Raises:
        SourceError: for any unexpected exception inside; it names the file.
        ResourceError: the disk is full, or too many files are open.
        MultisegError: one of our own errors passes through unchanged.
    """
    with _border(str(path), str(path)):
        yield


@contextmanager
def one_case(case: str, paths: tuple[Path, ...]) -> Iterator[None]:
    """Wrap code that works on one case's files. The error names the file, or with several files their common folder.

    Raises:
        as `one_file`.
    """
    places = sorted({str(path) for path in paths})
    with _border(f"case {case!r}", places[0] if len(places) == 1 else str(_folder_of(paths))):
        yield


@contextmanager
def _border(subject: str, file: str) -> Iterator[None]:
    try:
        yield
    except MultisegError:
        raise
    except MemoryError as error:
        reason = str(error) or "the system gave no more"
        message = f"not enough memory to read {subject} ({reason}). Is the size in its header right?"
        raise SourceError(message, code="OUT_OF_MEMORY", file=file) from error
    except Exception as error:  # see the module's docstring; Ctrl-C is not an Exception
        if isinstance(error, OSError) and error.errno in NO_ROOM | NO_DESCRIPTOR:  # the file is not to blame
            raise ResourceError(f"cannot read {subject} now: {error}. {remedy(error, '')}") from error
        cause = f"{type_and_place(error)}: {' '.join(str(error).split())[:300] or 'no message'}"
        message = (
            f"cannot read {subject} ({cause}). Its header is probably damaged: copy or export it again. If other "
            "programs read it, please report this line."
        )
        raise SourceError(message, code=UNREADABLE, file=file) from error


def _folder_of(paths: tuple[Path, ...]) -> Path:
    """The innermost folder that contains all of the paths; the current one if there is none."""
    try:
        return Path(os.path.commonpath([path.absolute().parent for path in paths]))
    except ValueError:  # no paths, or paths on several drives
        return Path()
