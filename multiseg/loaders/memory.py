"""Memory that processes share: batches are filled in place, so that nothing is sent."""

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
    """Anonymous memory that a worker process can map too, however it was started.

    With memfd it is not part of /dev/shm, whose size containers often limit to 64 MB. It is freed with the last
    process that maps it.

    Raises:
        ResourceError: there is not enough memory.
    """

    def __init__(self, num_bytes: int, reserve: bool = True) -> None:
        """`reserve`: allocate the memory now, rather than page by page when it is written to."""
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
                f"cannot allocate {num_bytes / 2**30:.1f} GiB of memory for patches ({error}). "
                + remedy(error, "Choose smaller patches or batches, fewer batches ahead, or a smaller cache.")
            ) from error

    def view(self) -> memoryview:
        return memoryview(self.map)

    def map_again(self) -> None:
        """Map it again in a forked process: memory that a driver locks is not passed on by a fork."""
        self.map = mmap.mmap(self._file, self.num_bytes)

    def close(self) -> None:
        """Close the handle; the memory itself stays while anything refers to it."""
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
            if error.errno not in NOT_SUPPORTED | NOT_PERMITTED:  # some sandboxes do not allow it
                raise
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _reserve(file: int, num_bytes: int) -> None:
    """Allocate the space of a file now, if its file system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def total_memory() -> int:
    """The memory of the machine in bytes, or of the container or job if that is less."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits(Path("/"))])


def check_there_is(num_bytes: int) -> None:
    """Raises ResourceError for more memory than the machine has: the system would end the process instead."""
    total = total_memory()
    if num_bytes > total:
        raise ResourceError(
            f"the patches read ahead and the cache need {num_bytes / 2**30:.1f} GiB, but this machine has "
            f"{total / 2**30:.1f} GiB. Choose smaller patches or batches, fewer batches ahead, or a smaller cache."
        )


def _limits(root: Path) -> Iterator[int]:
    """The memory limits that containers and batch systems set, by Linux's control groups (version 2)."""
    path = ""
    with suppress(OSError):
        path = (root / "proc/self/cgroup").read_text().strip().rpartition("::/")[2]
    for group in (PurePath(path), *PurePath(path).parents):
        with suppress(OSError, ValueError):  # ValueError: the file holds "max", which is no limit
            yield int((root / "sys/fs/cgroup" / group / "memory.max").read_text())
