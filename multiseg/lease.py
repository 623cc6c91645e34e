"""Leases: lock a place by a file or object that names its holder and is refreshed regularly.

They are for places without system locks: buckets, and file systems without flock.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from multiseg.errors import MultisegError, ResourceError
from multiseg.processes import is_running

REFRESH_SECONDS = 60
STALE_SECONDS = 600
"""A lease that was not refreshed for this long has expired."""

log = logging.getLogger(__name__)


class InUseError(ResourceError, BlockingIOError):
    """Another process has the lease. It is a BlockingIOError, as for locks of the system."""


class ConflictError(Exception):
    """The object to replace has changed meanwhile, or the object to create exists."""


@dataclass(frozen=True)
class Holder:
    """The process that has a lease. Processes with the same `machine` can look up each other's PID."""

    host: str
    pid: int
    machine: str
    started: str
    refreshed: str
    token: str

    def is_me(self) -> bool:
        return (self.host, self.pid, self.machine) == (socket.gethostname(), os.getpid(), this_machine())

    def is_dead(self) -> bool:
        """Whether the process is known to have ended, which only processes on the same machine can tell."""
        if not self.machine or self.machine != this_machine():
            return False
        return not is_running(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started at {self.started}"


@dataclass(frozen=True)
class Lease:
    """A lease as it was read: its holder, its version, and the time of its last change by the place's own clock."""

    holder: Holder
    version: Any
    changed: datetime


class Place(Protocol):
    """A place that one process at a time can hold a lease of."""

    name: str

    def look(self) -> Lease | None:
        """Read the lease, if there is one."""

    def put(self, data: bytes, version: Any) -> Any:
        """Write the lease, replacing `version`, or nothing if that is None; returns the new version.

        Raises:
            ConflictError: the lease has another version.
        """

    def remove(self) -> None:
        """Remove the lease."""

    def now(self) -> datetime:
        """The time by the place's own clock. Ours may be wrong by more than the life of a lease."""


@contextmanager
def hold(place: Place) -> Iterator[None]:
    """Hold a lease of a place until the block ends. A lease that has expired is taken over.

    Raises:
        InUseError: another process has it.
    """
    now = _now()
    mine = Holder(socket.gethostname(), os.getpid(), this_machine(), now, now, uuid.uuid4().hex)
    version = _take(place, mine)
    done = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(place, mine, version, done), daemon=True)
    refresher.start()
    try:
        yield
    finally:
        done.set()
        refresher.join()
        # If the place is gone, writing to it already failed with a better error. The lease expires by itself.
        with suppress(OSError, MultisegError):
            lease = place.look()
            if lease is not None and lease.holder.token == mine.token:
                place.remove()


def check_mine(name: str, lease: Lease | None) -> None:
    """Check that this process has the lease of a place.

    Raises:
        ResourceError: it does not.
    """
    if lease is None or not lease.holder.is_me():
        holder = lease.holder if lease else "nobody"
        raise ResourceError(
            f"this process has lost its lock of {name}, which {holder} has now. A computer that slept loses its lock. "
            "Committed data are safe; run the same command again when nobody else writes."
        )


def parse(data: bytes) -> Holder:
    """Parse the holder; if the data are invalid, an unknown one."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return Holder("an unknown computer", 0, "", "an unknown time", "", "")


def this_machine() -> str:
    """An identifier of the boot and PID namespace, which processes share if they can look up each other's PID."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _take(place: Place, mine: Holder) -> Any:
    """Write the lease `mine` unless another process has one; returns its version."""
    existing = place.look()
    if existing is not None:
        _check_may_take_over(place, existing)
    # On a conflict, another process was faster, or ours was written but the answer was lost.
    with suppress(ConflictError):
        place.put(_bytes(mine), None if existing is None else existing.version)
    # A server without conditional writes ignores the condition. Then the last writer has the lease.
    lease = place.look()
    if lease is None or lease.holder.token != mine.token:
        holder = lease.holder if lease else "unknown"
        message = f"another process has just started writing to {place.name}: {holder}. Run again when it has finished."
        raise InUseError(message)
    return lease.version


def _check_may_take_over(place: Place, lease: Lease) -> None:
    """Raise InUseError unless the holder is dead or its lease has expired."""
    age = (place.now() - lease.changed).total_seconds()
    if not lease.holder.is_dead() and age < STALE_SECONDS:
        raise InUseError(
            f"another process is writing to {place.name}: {lease.holder}, last seen {age:.0f} s ago. Wait until it has "
            f"finished, then run again. If it has died, its lock expires {STALE_SECONDS // 60} minutes after it was "
            "last seen."
        )
    log.warning("%s: took over the lock of %s, last seen %.0f s ago.", place.name, lease.holder, age)


def _refresh(place: Place, mine: Holder, version: Any, done: threading.Event) -> None:
    while not done.wait(REFRESH_SECONDS):
        with suppress(OSError, MultisegError):  # the next refresh may succeed
            try:
                version = place.put(_bytes(replace(mine, refreshed=_now())), version)
            except ConflictError:
                lease = place.look()
                if lease is None or lease.holder.token != mine.token:
                    holder = lease.holder if lease else "nobody"
                    log.warning("this process has lost its lock of %s, which %s has now.", place.name, holder)
                    return  # the next write notices it and stops
                version = lease.version  # ours was written, but the answer was lost


def _bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()
