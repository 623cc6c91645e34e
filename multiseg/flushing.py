"""Onto the disk, in an order that a loss of power cannot break: contents before names, and names before what builds on
them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from multiseg.faults import NOT_SUPPORTED

log = logging.getLogger(__name__)


def flush(handle: int) -> None:
    """Wait until an open file or folder is on the disk; where its file system cannot tell, say so once.

    Raises:
        OSError: the disk failed, or is full.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        _tell_once(error.strerror or str(error))


@cache
def _tell_once(reason: str) -> None:
    log.warning(
        "a file system that is written to cannot flush files to its disk (%s). After a loss of power, run "
        "multiseg verify on what was written last.",
        reason,
    )


def flush_folders(folders: Iterable[Path]) -> None:
    """Keep the names in these folders as they are now; a folder that is gone has none.

    Raises:
        OSError: the disk failed.
    """
    for folder in sorted(folders):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # may be written to, not read
            continue
        try:
            flush(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> set[Path]:
    """Make a folder and those above it that are missing; the folders that got a new name in them."""
    missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    return {one.parent for one in missing}
