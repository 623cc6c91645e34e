"""Flush files to the disk in an order that survives a power loss: contents, then names, then what depends on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from multiseg.faults import NOT_SUPPORTED

log = logging.getLogger(__name__)


def flush(descriptor: int) -> None:
    """Wait until an open file or folder is on the disk; warn once if its file system cannot flush.

    Raises:
        OSError: the disk failed, or is full.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        _warn_once(error.strerror or str(error))


@cache
def _warn_once(reason: str) -> None:
    log.warning(
        "a file system cannot flush files to its disk (%s). After a power loss, run multiseg verify on what was "
        "written last.",
        reason,
    )


def flush_folders(folders: Iterable[Path]) -> None:
    """Flush the names in these folders to the disk. A folder that no longer exists is skipped.

    Raises:
        OSError: the disk failed.
    """
    for folder in sorted(folders):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # a folder may be writable but not readable
            continue
        try:
            flush(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> set[Path]:
    """Create a folder and its missing parents; returns the folders in which a name was added."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    return {path.parent for path in missing}
