"""Holding a place by a file or an object in it that says who holds it, as long as it is refreshed.

For places whose system has no locks: buckets, and file systems without flock.
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
"""A holder that was not seen for so long is taken for dead."""

log = logging.getLogger(__name__)


class InUseError(ResourceError, BlockingIOError):
    """Another process holds the place; as the system's own locks say it."""


class ConflictError(Exception):
    """What was to be replaced is another by now, or what was to be made is there."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a place. `machine` is what processes share that see each other's numbers."""

    host: str
    pid: int
    machine: str
    started: str
    refreshed: str
    token: str

    def is_me(self) -> bool:
        return (self.host, self.pid, self.machine) == (socket.gethostname(), os.getpid(), this_machine())

    def is_dead(self) -> bool:
        """Whether it is known to have ended: only processes of this very machine can be asked."""
        if not self.machine or self.machine != this_machine():
            return False
        return not is_running(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which began at {self.started}"


@dataclass(frozen=True)
class Seen:
    """Who holds a place, the version of what says so, and since when it is unchanged, by the place's own clock."""

    holder: Holder
    version: Any
    changed: datetime


class Place(Protocol):
    """A place that one process holds at a time."""

    name: str

    def look(self) -> Seen | None:
        """Who holds it."""

    def put(self, data: bytes, version: Any) -> Any:
        """Say who holds it, in the place of `version` or, if that is None, of nothing; the new version.

        Raises:
            ConflictError: something else is there.
        """

    def remove(self) -> None:
        """Let go."""

    def now(self) -> datetime:
        """The place's own clock: ours may be wrong by more than a hold lasts."""


@contextmanager
def hold(place: Place) -> Iterator[None]:
    """Hold a place for this process. A hold that its process left behind is taken over.

    Raises:
        InUseError: another process holds it.
    """
    mine = _new_holder()
    version = _take(place, mine)
    done = threading.Event()
    keeper = threading.Thread(target=_refresh, args=(place, mine, version, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        # Where the place is gone, the error of the writing is the one to tell; the hold ends by itself.
        with suppress(OSError, MultisegError):
            left = place.look()
            if left is not None and left.holder.token == mine.token:
                place.remove()


def check_mine(name: str, seen: Seen | None) -> None:
    """Whether this process is the one that holds a place.

    Raises:
        ResourceError: it is not, or never was.
    """
    if seen is None or not seen.holder.is_me():
        raise ResourceError(
            f"{name} is no longer held by this process: {seen.holder if seen else 'nobody'} holds it. A computer that "
            "slept loses its hold. What was committed is safe; run the same command again when nobody else writes."
        )


def parse(data: bytes) -> Holder:
    """A holder from the bytes that say who it is."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return Holder("an unknown computer", 0, "", "an unknown time", "", "")


def this_machine() -> str:
    """What processes share that see each other's numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return ""


def _new_holder() -> Holder:
    now = _now()
    return Holder(socket.gethostname(), os.getpid(), this_machine(), now, now, uuid.uuid4().hex)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _take(place: Place, mine: Holder) -> Any:
    """Put `mine` where nobody else can have put theirs since we looked; the version of what was put."""
    there = place.look()
    if there is not None:
        _check_may_take_over(place, there)
    # A conflict: somebody was faster, or an answer was lost and ours is there.
    with suppress(ConflictError):
        place.put(_bytes(mine), None if there is None else there.version)
    # A server that knows no conditions passes over them: then the last one to come holds it.
    held = place.look()
    if held is None or held.holder.token != mine.token:
        raise InUseError(
            f"another process began to write to {place.name} just now: {held.holder if held else 'nobody'}. Run again "
            "when it is done."
        )
    return held.version


def _check_may_take_over(place: Place, there: Seen) -> None:
    """Raises InUseError unless the holder is dead."""
    unseen = (place.now() - there.changed).total_seconds()
    if not there.holder.is_dead() and unseen < STALE_SECONDS:
        raise InUseError(
            f"another process is writing to {place.name}: {there.holder} and was last seen {unseen:.0f} s ago. Wait "
            f"for it, then run again. If it has died, its hold ends {STALE_SECONDS // 60} minutes after it was last "
            "seen."
        )
    log.warning("%s: took over from %s and was last seen %.0f s ago.", place.name, there.holder, unseen)


def _refresh(place: Place, mine: Holder, version: Any, done: threading.Event) -> None:
    while not done.wait(REFRESH_SECONDS):
        with suppress(OSError, MultisegError):  # the next one may get through
            try:
                version = place.put(_bytes(replace(mine, refreshed=_now())), version)
            except ConflictError:
                held = place.look()
                if held is None or held.holder.token != mine.token:
                    log.warning("%s is no longer held by this process: %s.", place.name, held.holder if held else "")
                    return  # somebody took over: the next write sees it and ends
                version = held.version  # ours, but the answer to it was lost


def _bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()
