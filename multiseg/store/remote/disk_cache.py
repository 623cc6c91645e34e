"""Whole objects of remote stores on the local disk, within a budget, shared by processes and by runs."""

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
"""Left free on the disk whatever the budget: checkpoints and others need room too."""
_PART = ".part"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """An object here, or one that comes; its time of change says when it was last used."""

    path: Path
    num_bytes: int
    used_ns: int

    @property
    def is_part(self) -> bool:
        return self.path.suffix == _PART


class _NoDiskError(Exception):
    """The disk was of no use; it has been told."""


class DiskCache:
    """Copies of whole objects below a folder, together no larger than a budget.

    Training draws its cases at random, each as likely as the next. Then no choice of what to keep is better than
    another, and to drop one case for another only costs the transfer. So a run takes objects in until the budget
    is full, and keeps them. What earlier runs left and no run that is alive has used since it began makes room,
    the oldest use first. What is not taken in has to be read from its server each time.

    A run is whoever makes the cache, and all processes that it is sent to; a locked file below `runs` says that
    it is alive. Locks end with their processes, however those end. A copy is written beside, flushed and renamed,
    so what is here is whole; what a killed process left of one is unlocked, and the next one to take something in
    removes it. Nobody waits for a copy that another one is making.

    A disk that is full or cannot be written is told once, and then nothing more is taken in.
    """

    def __init__(self, folder: str | Path, budget_bytes: int) -> None:
        self._begin(Path(folder).expanduser(), budget_bytes, f"{time.time_ns()}.{uuid.uuid4().hex}", True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rejoined, (self.folder, self.budget_bytes, self._run, self._takes)

    def _begin(self, folder: Path, budget_bytes: int, run: str, takes: bool) -> None:
        self.folder, self.budget_bytes = folder, budget_bytes
        self.objects = folder / "objects"
        self._run, self._takes = run, takes
        self._refused_bytes = budget_bytes + 1
        with suppress(_NoDiskError), self._disk():
            if takes:
                self._join()

    def find(self, name: str, num_bytes: int) -> bool:
        """Whether a copy is here; it is then in use by this run, and stays."""
        path = self.objects / name
        try:
            self._mark_used(path)  # first, so that nobody takes it for unused after we saw it
            if path.stat().st_size == num_bytes:
                return True
        except OSError:
            return False
        self.drop(name)
        return False

    def fill(self, name: str, num_bytes: int, pieces: Iterable[Any]) -> bool:
        """Take in an object, piece by piece, if there is room. Whether it is here now.

        Errors of `pieces` go up, and nothing is taken in then.
        """
        if not self._takes or num_bytes >= self._refused_bytes:
            return False
        try:
            with self._disk():
                part = self._admit(name, num_bytes)
            if part is None:
                return False
            with part:
                return self._write(part, name, num_bytes, pieces)
        except _NoDiskError:
            return False

    def drop(self, name: str) -> None:
        """Remove a copy, since it is damaged."""
        with suppress(OSError):
            (self.objects / name).unlink()

    def _write(self, part: BinaryIO, name: str, num_bytes: int, pieces: Iterable[Any]) -> bool:
        written = 0
        try:
            for piece in pieces:
                with self._disk():
                    written += part.write(piece)
            if written != num_bytes:
                return False
            with self._disk():
                part.flush()
                self._mark_used(part.fileno())
                flush(part.fileno())
                with self._locked():
                    Path(part.name).rename(self.objects / name)
            return True
        finally:
            with suppress(OSError):
                Path(part.name).unlink()

    def _admit(self, name: str, num_bytes: int) -> BinaryIO | None:
        """The file to write an object to; None without room for it, or when another one is about it."""
        with self._locked():
            files = list(self._files())
            if any(file.path.name in (name, name + _PART) for file in files):
                return None
            if not self._make_room(files, name, num_bytes):
                self._refused_bytes = num_bytes
                return None
            status = os.statvfs(self.objects)
            if status.f_bavail * status.f_frsize < num_bytes + FREE_BYTES:
                raise OSError(errno.ENOSPC, "there is too little room on the disk")
            part = (self.objects / (name + _PART)).open("xb")
            fcntl.flock(part, fcntl.LOCK_EX)
            part.truncate(num_bytes)  # so that others count it
            return part

    def _files(self) -> Iterator[_File]:
        """What is here, but for the parts of copies that nobody makes any more: those are removed."""
        for entry in os.scandir(self.objects):
            path = Path(entry.path)
            with suppress(FileNotFoundError):
                if path.suffix == _PART and not _is_locked(path):
                    path.unlink()
                    continue
                status = path.stat()
                yield _File(path, status.st_size, status.st_mtime_ns)

    def _make_room(self, files: list[_File], name: str, num_bytes: int) -> bool:
        """Remove what is old until the object fits, or nothing if it would not."""
        missing = sum(file.num_bytes for file in files) + num_bytes - self.budget_bytes
        if missing <= 0:
            return True
        began = self._first_began()
        old = [file for file in files if file.used_ns < began and not file.is_part]
        if sum(file.num_bytes for file in old) < missing:
            return False
        # Another version of the same object will not be asked for again.
        for file in sorted(old, key=lambda file: (not _is_same_object(file.path.name, name), file.used_ns)):
            if missing > 0:
                file.path.unlink()
                missing -= file.num_bytes
        return True

    def _first_began(self) -> int:
        """When the first of the runs that are alive began, in ns; this is one of them."""
        alive = [_began(self._run)]
        for path in (self.folder / "runs").iterdir():
            if _is_locked(path):
                alive.append(_began(path.name))
            else:
                path.unlink()
        return min(alive)

    def _mark_used(self, file: Path | int) -> None:
        """Note that this run uses a copy now, and so after it began: a clock may be set back, the disk's be behind."""
        now = max(time.time_ns(), _began(self._run))
        os.utime(file, ns=(now, now))

    def _join(self) -> None:
        """Say that this process is one of its run."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # patients' scans are nobody else's
        self.objects.mkdir(exist_ok=True)
        (self.folder / "runs").mkdir(exist_ok=True)
        with self._locked():
            handle = os.open(self.folder / "runs" / self._run, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(handle, fcntl.LOCK_SH)
        weakref.finalize(self, os.close, handle)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, of all processes and threads; never while anything is transferred."""
        with (self.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Where the disk is of no use, say so once and go on without it."""
        try:
            yield
        except OSError as error:
            if self._takes:
                log.warning(
                    "%s: no more shards can be kept there (%s). Going on without: they are read from their server each "
                    "time. %s Another folder can be named, too.",
                    self.folder,
                    error.strerror or error,
                    remedy(error, "Check the disk."),
                )
            self._takes = False
            raise _NoDiskError from error


def _rejoined(folder: Path, budget_bytes: int, run: str, takes: bool) -> DiskCache:
    """The cache of a run in another process of it."""
    cache = DiskCache.__new__(DiskCache)
    cache._begin(folder, budget_bytes, run, takes)
    return cache


def name_of(url: str, key: str, version: str) -> str:
    """What the copy of an object is called: no two objects, nor two versions of one, are called the same."""
    return f"{_digest(url, key)}-{_digest(version)}"


def _began(run: str) -> int:
    """When a run began, in ns, by its name."""
    return int(run.split(".")[0])


def _is_same_object(one: str, other: str) -> bool:
    return one.split("-")[0] == other.split("-")[0]


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def _is_locked(path: Path) -> bool:
    """Whether a process that lives has locked a file."""
    with path.open("r+b") as file:  # network file systems lock only what is open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
