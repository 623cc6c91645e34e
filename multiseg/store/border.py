"""The one place where whatever a case's files make a reader raise becomes an error of that case.

Headers are read when a folder is recognised, when memory is estimated and when a case is prepared, and a damaged one
may trip any library below us over anything. One file must not end the run for all the others. So each of these ways
passes here: first the file, which the error then names, and around all of a case's files the case.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multiseg.errors import MultisegError, ResourceError, SourceError
from multiseg.faults import NO_DESCRIPTOR, NO_ROOM, remedy

UNREADABLE = "UNREADABLE"
"""The code of errors that nobody foresaw."""


@contextmanager
def one_file(path: Path) -> Iterator[None]:
    """Around everything that reads one file.

    Raises:
        SourceError: with the file's name, whatever was raised inside.
        MultisegError: what was raised inside on purpose stays as it is.
    """
    with _border(str(path), str(path)):
        yield


@contextmanager
def one_case(case: str, paths: tuple[Path, ...]) -> Iterator[None]:
    """Around everything that is made of one case's files; the error names the file, or where there are more the folder.

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
        said = str(error) or "the system gave no more"
        message = f"{subject} needs more memory to be read than there is ({said}). Is its size in its header right?"
        raise SourceError(message, code="OUT_OF_MEMORY", file=file) from error
    except Exception as error:  # see the module's docstring; Ctrl-C is no Exception
        if isinstance(error, OSError) and error.errno in NO_ROOM | NO_DESCRIPTOR:  # no file is to blame
            raise ResourceError(f"{subject} cannot be read now: {error}. {remedy(error, '')}") from error
        what = f"{type(error).__name__} in {_place_of(error)}: {' '.join(str(error).split())[:300] or 'no message'}"
        message = (
            f"{subject} cannot be read ({what}). Its header is probably damaged: copy or export it again. If other "
            "programs read it, please report this line."
        )
        raise SourceError(message, code=UNREADABLE, file=file) from error


def _place_of(error: Exception) -> str:
    """Where it was raised, for a report: the error itself may come from another process, without its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _folder_of(paths: tuple[Path, ...]) -> Path:
    """The innermost folder that holds all of them."""
    if not paths:
        return Path()
    return next(folder for folder in paths[0].parents if all(path.is_relative_to(folder) for path in paths))
