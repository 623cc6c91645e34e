"""The system's locks; and where a file system has none (NFS without its lock service, SMB, FUSE), a lock file instead.

A lock of the system (flock) ends with its process, however that ends: forked children do not keep it. A lock file
says who holds it and is refreshed every minute; one that was not for ten minutes, or whose process of this computer is
dead, is taken over.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO

from multiseg.faults import NOT_SUPPORTED
from multiseg.lease import ConflictError, InUseError, Seen, hold, parse

POLL_SECONDS = 0.1
CHANGE_SECONDS = 60
"""A change of a lock file takes milliseconds; what was left of one longer ago is of a process that died at it."""

WRITER = ".multiseg-writer"
"""The lock file of a folder."""

_held: set[int] = set()
"""Descriptors that this process holds locks by."""

log = logging.getLogger(__name__)


@contextmanager
def locked(
    file: IO[bytes] | IO[str] | int, place: Path, *, shared: bool = False, wait: bool | Callable[[], bool] = True
) -> Iterator[None]:
    """Lock an open file or folder until the block ends.

    Two threads exclude each other as two processes do, and one thread that locks the same place twice waits for itself.

    Args:
        place: what is locked, by its path. Where the file system has no locks, PLACE.held is the lock file.
        shared: others that only read may have it, too. A lock file has no such mode; a place that cannot be written
            to is then read without a lock.
        wait: whether to wait while another process has it; or a function that is asked again and again.

    Raises:
        BlockingIOError: another process has it, and `wait` is false.
        OSError: the lock, or the lock file, cannot be had.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    with ExitStack() as lock:
        while True:
            try:
                lock.enter_context(_locked_at_once(descriptor, place, shared))
                break
            except BlockingIOError:
                if not (wait() if callable(wait) else wait):
                    raise
                time.sleep(POLL_SECONDS)
        yield


@contextmanager
def _locked_at_once(descriptor: int, place: Path, shared: bool) -> Iterator[None]:
    lock_file = place.with_name(f"{place.name}.held") if place.is_file() else place / WRITER
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        _tell_once(str(lock_file.parent), error.strerror or str(error))
        with _lock_file(lock_file, shared):
            yield
        return
    _held.add(descriptor)
    try:
        # Of a computer from which this place has no locks.
        seen = None if shared else FolderPlace(lock_file, str(lock_file.parent)).look()
        is_held_elsewhere = seen is not None and not seen.holder.is_me() and not seen.holder.is_dead()
        with _lock_file(lock_file, shared) if is_held_elsewhere else nullcontext():
            yield
    finally:
        _held.discard(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _let_go_in_child() -> None:
    """A lock of the system lasts as long as any process has its open file; a forked child may outlive its parent."""
    for descriptor in _held:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, descriptor, inheritable=False)  # the number stays, for whoever closes it
        os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def _lock_file(path: Path, shared: bool) -> Iterator[None]:
    with ExitStack() as lock:
        try:
            lock.enter_context(hold(FolderPlace(path, str(path.parent))))
        except InUseError:
            raise
        except OSError as error:
            if not (shared and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)):
                raise
        yield


@cache
def _tell_once(folder: str, reason: str) -> None:
    log.warning(
        "%s: its file system has no locks (%s). A lock file is used instead. If a computer dies with it, others wait "
        "ten minutes.",
        folder,
        reason,
    )


class FolderPlace:
    """A lock file: made only where there is none, replaced by renaming, and dated by its own file system's clock."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    def look(self) -> Seen | None:
        try:
            with self.path.open("rb") as file:
                data, changed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        return Seen(parse(data), data, datetime.fromtimestamp(changed, UTC))

    def put(self, data: bytes, version: bytes | None) -> bytes:
        if version is None:
            _make(self.path, data)
            return data
        with self._changing():
            seen = self.look()
            if seen is None or seen.version != version:
                raise ConflictError
            beside = self._beside()
            beside.write_bytes(data)
            beside.replace(self.path)
        return data

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def now(self) -> datetime:
        beside = self._beside()
        beside.touch()
        try:
            return datetime.fromtimestamp(beside.stat().st_mtime, UTC)
        finally:
            beside.unlink(missing_ok=True)

    def _beside(self) -> Path:
        return self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time replaces the file: another file is made meanwhile, which only one can."""
        turn = self.path.with_name(f"{self.path.name}.change")
        try:
            _make(turn, b"")
        except ConflictError:
            with suppress(FileNotFoundError):
                age = self.now() - datetime.fromtimestamp(turn.stat().st_mtime, UTC)
                if age.total_seconds() > CHANGE_SECONDS:
                    turn.unlink()
            raise
        try:
            yield
        finally:
            turn.unlink(missing_ok=True)


def _make(path: Path, data: bytes) -> None:
    """Make a file where there is none.

    Raises:
        ConflictError: there is one.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise ConflictError from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
