"""Memory that processes share, made once: batches are filled in place and nothing is sent."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.reduction import DupFd
from pathlib import Path, PurePath
from typing import Any

from multiseg.errors import ResourceError
from multiseg.faults import NOT_PERMITTED, NOT_SUPPORTED, remedy


class SharedMemory:
    """Anonymous memory that a worker process maps too, whichever way it was started.

    Where the system has memfd it is not part of /dev/shm, whose size containers often limit to 64 MB.
    It is gone with the last process that has it.

    Raises:
        ResourceError: there is not as much memory.
    """

    def __init__(self, num_bytes: int, reserve: bool = True) -> None:
        """`reserve`: have the memory now, rather than page by page when it is written to."""
        self.num_bytes = max(1, num_bytes)
        self._file = -1
        try:
            self._file = _anonymous_file()
            check_there_is(self.num_bytes)
            os.ftruncate(self._file, self.num_bytes)
            if reserve:
                _reserve(self._file, self.num_bytes)
            self.map = mmap.mmap(self._file, self.num_bytes)
        except OSError as error:
            self.close()
            if isinstance(error, ResourceError):
                raise
            raise ResourceError(
                f"{num_bytes / 2**30:.1f} GiB of memory for patches cannot be had ({error}). "
                + remedy(error, "Choose smaller patches or batches, fewer batches ahead, or a smaller cache.")
            ) from error

    def view(self) -> memoryview:
        return memoryview(self.map)

    def map_again(self) -> None:
        """Map it anew in a process that was forked: drivers keep forked processes from memory that they lock."""
        self.map = mmap.mmap(self._file, self.num_bytes)

    def close(self) -> None:
        """Give up the handle; the memory itself stays while anything looks at it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"num_bytes": self.num_bytes, "handle": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.num_bytes = state["num_bytes"]
        self._file = state["handle"].detach()
        self.map = mmap.mmap(self._file, self.num_bytes)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("multiseg")
        except OSError as error:
            if error.errno not in NOT_SUPPORTED | NOT_PERMITTED:  # some sandboxes have none
                raise
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _reserve(file: int, num_bytes: int) -> None:
    """Have the room of a file now, where its file system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def check_there_is(num_bytes: int) -> None:
    """Refuse what this process can never have: asking the system for it would end the process instead."""
    there = min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits(Path("/"))])
    if num_bytes > there:
        raise ResourceError(
            f"the patches that are made ahead, or the cache, would take {num_bytes / 2**30:.1f} GiB, and there are "
            f"{there / 2**30:.1f} GiB here. Choose smaller patches or batches, fewer batches ahead, or a smaller cache."
        )


def _limits(root: Path) -> Iterator[int]:
    """The limits of memory that containers and batch systems set, by Linux's control groups (version 2)."""
    own = ""
    with suppress(OSError):
        own = (root / "proc/self/cgroup").read_text().strip().rpartition("::/")[2]
    for group in (PurePath(own), *PurePath(own).parents):
        with suppress(OSError, ValueError):  # a ValueError: it says "max", that there is none
            yield int((root / "sys/fs/cgroup" / group / "memory.max").read_text())
