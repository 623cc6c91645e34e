"""A cache of whole objects of remote stores on the local disk, with a size limit, shared by processes and runs."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from multiseg.faults import remedy
from multiseg.flushing import flush

FREE_BYTES = 2**30
"""Always left free on the disk: checkpoints and other programs need space too."""
_PART = ".part"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """An object in the cache, or one that is being copied. Its modification time is the time of its last use."""

    path: Path
    num_bytes: int
    used_ns: int

    @property
    def is_part(self) -> bool:
        return self.path.suffix == _PART


class _DiskFaultError(Exception):
    """The disk cannot be used; the warning has been logged."""


class DiskCache:
    """Copies of whole objects in a folder, with a total size within a budget.

    Training draws cases at random, all with the same probability. So no choice of objects to keep is better than
    another, and replacing one by another only costs a transfer. A run therefore adds objects until the budget is full,
    and keeps them. Objects that no live run has used since it began are removed for new ones, least recently used
    first. Objects that do not fit are read from their server each time.

    A run is the process that creates the cache, and all processes that it is sent to. A locked file in `runs` shows
    that it is alive; locks end with their process, however it ends. A copy is written to a .part file, flushed and
    renamed, so every copy is complete. The .part file of a killed process is unlocked and is removed with the next
    addition. No process waits for a copy that another one is making.

    If the disk is full or cannot be written, the cache logs one warning and adds nothing more.
    """

    def __init__(self, folder: str | Path, budget_bytes: int, run: str = "", adds: bool = True) -> None:
        self.folder, self.budget_bytes = Path(folder).expanduser(), budget_bytes
        self.objects = self.folder / "objects"
        self._run, self._adds = run or f"{time.time_ns()}.{uuid.uuid4().hex}", adds
        self._refused_bytes = budget_bytes + 1
        with suppress(_DiskFaultError), self._handling_disk_faults():
            if adds:
                self._register()

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process, the copy belongs to the same run.
        return DiskCache, (self.folder, self.budget_bytes, self._run, self._adds)

    def find(self, name: str, num_bytes: int) -> bool:
        """Whether the cache has a copy of this size. It is marked as used, so that it stays."""
        path = self.objects / name
        try:
            self._mark_used(path)  # first, so that no other run removes it as unused after we saw it
            if path.stat().st_size == num_bytes:
                return True
        except OSError:
            return False
        self.drop(name)
        return False

    def fill(self, name: str, num_bytes: int, pieces: Iterable[Any]) -> bool:
        """Add an object, piece by piece, if there is room. Returns whether it was added.

        Errors of `pieces` are raised, and then nothing is added.
        """
        if not self._adds or num_bytes >= self._refused_bytes:
            return False
        try:
            with self._handling_disk_faults():
                part = self._open_part(name, num_bytes)
            if part is None:
                return False
            with part:
                return self._write(part, name, num_bytes, pieces)
        except _DiskFaultError:
            return False

    def drop(self, name: str) -> None:
        """Remove a damaged copy."""
        with suppress(OSError):
            (self.objects / name).unlink()

    def _write(self, part: BinaryIO, name: str, num_bytes: int, pieces: Iterable[Any]) -> bool:
        written = 0
        try:
            for piece in pieces:
                with self._handling_disk_faults():
                    written += part.write(piece)
            if written != num_bytes:
                return False
            with self._handling_disk_faults():
                part.flush()
                self._mark_used(part.fileno())
                flush(part.fileno())
                with self._locked():
                    Path(part.name).rename(self.objects / name)
            return True
        finally:
            with suppress(OSError):
                Path(part.name).unlink()

    def _open_part(self, name: str, num_bytes: int) -> BinaryIO | None:
        """Open the file to write an object to; None if there is no room, or if another process is copying it."""
        with self._locked():
            files = list(self._files())
            if any(file.path.name in (name, name + _PART) for file in files):
                return None
            if not self._make_room(files, name, num_bytes):
                self._refused_bytes = num_bytes
                return None
            status = os.statvfs(self.objects)
            if status.f_bavail * status.f_frsize < num_bytes + FREE_BYTES:
                raise OSError(errno.ENOSPC, "too little space is left on the disk")
            part = (self.objects / (name + _PART)).open("xb")
            fcntl.flock(part, fcntl.LOCK_EX)
            part.truncate(num_bytes)  # so that others count it
            return part

    def _files(self) -> Iterator[_File]:
        """The files of the cache. Abandoned .part files are removed."""
        for entry in os.scandir(self.objects):
            path = Path(entry.path)
            with suppress(FileNotFoundError):
                if path.suffix == _PART and not _is_locked(path):
                    path.unlink()
                    continue
                status = path.stat()
                yield _File(path, status.st_size, status.st_mtime_ns)

    def _make_room(self, files: list[_File], name: str, num_bytes: int) -> bool:
        """Remove unused files until the object fits; remove nothing if it cannot fit."""
        excess_bytes = sum(file.num_bytes for file in files) + num_bytes - self.budget_bytes
        if excess_bytes <= 0:
            return True
        first_start = self._start_of_first_run()
        unused = [file for file in files if file.used_ns < first_start and not file.is_part]
        if sum(file.num_bytes for file in unused) < excess_bytes:
            return False
        # First other versions of the same object: they will not be needed again.
        for file in sorted(unused, key=lambda file: (file.path.name.split("-")[0] != name.split("-")[0], file.used_ns)):
            if excess_bytes > 0:
                file.path.unlink()
                excess_bytes -= file.num_bytes
        return True

    def _start_of_first_run(self) -> int:
        """When the earliest live run began, in ns. This run is one of them."""
        starts = [_start_of(self._run)]
        for path in (self.folder / "runs").iterdir():
            if _is_locked(path):
                starts.append(_start_of(path.name))
            else:
                path.unlink()
        return min(starts)

    def _mark_used(self, file: Path | int) -> None:
        """Mark a copy as used now. The time is at least the start of the run, in case the clock was set back."""
        now = max(time.time_ns(), _start_of(self._run))
        os.utime(file, ns=(now, now))

    def _register(self) -> None:
        """Register this process as one of its run."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # patients' scans must be private
        self.objects.mkdir(exist_ok=True)
        (self.folder / "runs").mkdir(exist_ok=True)
        with self._locked():
            handle = os.open(self.folder / "runs" / self._run, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(handle, fcntl.LOCK_SH)
        weakref.finalize(self, os.close, handle)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the cache against all other processes and threads; never held during a transfer."""
        with (self.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _handling_disk_faults(self) -> Iterator[None]:
        """If the disk fails, log one warning and stop adding objects."""
        try:
            yield
        except OSError as error:
            if self._adds:
                log.warning(
                    "cannot keep more shards in %s (%s). Continuing without: they are read from the server each time. "
                    "%s Or name another folder.",
                    self.folder, error.strerror or error, remedy(error, "Check the disk."),
                )  # fmt: skip
            self._adds = False
            raise _DiskFaultError from error


def name_of(url: str, key: str, version: str) -> str:
    """The file name for the copy of an object; unique for each object and version."""
    return f"{_digest(url, key)}-{_digest(version)}"


def _start_of(run: str) -> int:
    """When a run began, in ns; its name tells."""
    return int(run.split(".")[0])


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def _is_locked(path: Path) -> bool:
    """Whether a live process has locked a file."""
    with path.open("r+b") as file:  # network file systems lock only what is open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
