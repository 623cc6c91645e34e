"""File locks: flock, or lock files on file systems without it (NFS without its lock service, SMB, FUSE).

A flock ends with its process, however that ends; forked children do not keep it. A lock file names its holder and is
refreshed every minute. It is taken over if it was not refreshed for ten minutes, or if its process on this computer is
dead.
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
from multiseg.lease import ConflictError, InUseError, Lease, hold, parse

POLL_SECONDS = 0.1
CHANGE_SECONDS = 60
"""Changing a lock file takes milliseconds. The marker of a change older than this is from a process that died."""

WRITER = ".multiseg-writer"
"""The lock file of a folder."""

_locked_descriptors: set[int] = set()
"""Descriptors by which this process has locks."""

log = logging.getLogger(__name__)


@contextmanager
def locked(
    file: IO[bytes] | IO[str] | int, place: Path, *, shared: bool = False, wait: bool | Callable[[], bool] = True
) -> Iterator[None]:
    """Lock an open file or folder until the block ends.

    Threads exclude each other as processes do. A thread that locks the same place twice waits for itself.

    Args:
        place: the path of what is locked. On file systems without locks, PLACE.held is the lock file.
        shared: whether other shared locks are allowed, for reading. Lock files are always exclusive, but a read-only
            place is then read without a lock.
        wait: whether to wait while another process has the lock; or a function that is called repeatedly to decide.

    Raises:
        BlockingIOError: another process has the lock, and `wait` is false.
        OSError: the file or the lock file cannot be locked.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    with ExitStack() as lock:
        while True:
            try:
                lock.enter_context(_try_lock(descriptor, place, shared))
                break
            except BlockingIOError:
                if not (wait() if callable(wait) else wait):
                    raise
                time.sleep(POLL_SECONDS)
        yield


@contextmanager
def _try_lock(descriptor: int, place: Path, shared: bool) -> Iterator[None]:
    lock_file = place.with_name(f"{place.name}.held") if place.is_file() else place / WRITER
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        _warn_once(str(lock_file.parent), error.strerror or str(error))
        with _lock_file(lock_file, shared):
            yield
        return
    _locked_descriptors.add(descriptor)
    try:
        # There may be a lock file from another computer on which this file system has no locks.
        lease = None if shared else FolderPlace(lock_file).look()
        is_held_elsewhere = lease is not None and not lease.holder.is_me() and not lease.holder.is_dead()
        with _lock_file(lock_file, shared) if is_held_elsewhere else nullcontext():
            yield
    finally:
        _locked_descriptors.discard(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _release_in_child() -> None:
    """Close the locked files in a forked child. A flock lasts while any process has its file open."""
    for descriptor in _locked_descriptors:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)  # the descriptor stays valid for the code that closes it
        os.close(null)
    _locked_descriptors.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def _lock_file(path: Path, shared: bool) -> Iterator[None]:
    with ExitStack() as lock:
        try:
            lock.enter_context(hold(FolderPlace(path)))
        except InUseError:
            raise
        except OSError as error:
            # A read-only place may be read without a lock.
            if not (shared and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)):
                raise
        yield


@cache
def _warn_once(folder: str, reason: str) -> None:
    log.warning(
        "%s: its file system has no locks (%s), so a lock file is used. If its computer crashes, others wait ten "
        "minutes.",
        folder,
        reason,
    )


class FolderPlace:
    """A lock file: created exclusively, replaced by renaming, and dated by the clock of its file system."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path.parent)

    def look(self) -> Lease | None:
        try:
            with self.path.open("rb") as file:
                data, changed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        return Lease(parse(data), data, datetime.fromtimestamp(changed, UTC))

    def put(self, data: bytes, version: bytes | None) -> bytes:
        if version is None:
            _create(self.path, data)
            return data
        with self._changing():
            lease = self.look()
            if lease is None or lease.version != version:
                raise ConflictError
            temporary = self._temporary_path()
            temporary.write_bytes(data)
            temporary.replace(self.path)
        return data

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def now(self) -> datetime:
        temporary = self._temporary_path()
        temporary.touch()
        try:
            return datetime.fromtimestamp(temporary.stat().st_mtime, UTC)
        finally:
            temporary.unlink(missing_ok=True)

    def _temporary_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let one process at a time replace the file: only one can create the marker file."""
        marker = self.path.with_name(f"{self.path.name}.change")
        try:
            _create(marker, b"")
        except ConflictError:
            with suppress(FileNotFoundError):
                age = self.now() - datetime.fromtimestamp(marker.stat().st_mtime, UTC)
                if age.total_seconds() > CHANGE_SECONDS:
                    marker.unlink()
            raise
        try:
            yield
        finally:
            marker.unlink(missing_ok=True)


def _create(path: Path, data: bytes) -> None:
    """Create a file.

    Raises:
        ConflictError: it exists.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise ConflictError from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
