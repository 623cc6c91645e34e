"""One writer at a time on a remote store: an object beside its groups says who it is, as long as it is refreshed."""

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
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError

from multiseg.errors import MultisegError, ResourceError
from multiseg.store.connection import connect, in_words, is_web, read_small

KEY = ".multiseg-writer"
REFRESH_SECONDS = 60
STALE_SECONDS = 600
"""A writer that was not seen for so long is taken for dead."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The process that writes to a store. `machine` is what processes share that see each other's numbers."""

    host: str
    pid: int
    machine: str
    started: str
    refreshed: str
    token: str

    def is_me(self) -> bool:
        return (self.host, self.pid, self.machine) == (socket.gethostname(), os.getpid(), _machine())

    def is_dead(self) -> bool:
        """Whether it is known to have ended: only processes of this very machine can be asked."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which began at {self.started}"


@contextmanager
def hold(url: str) -> Iterator[None]:
    """Hold a remote store for this process. A hold that its process left behind is taken over.

    Raises:
        ResourceError: another process holds it, or the place cannot be written.
        StoreError: there is no such bucket.
    """
    if is_web(url):
        raise ResourceError(f"{url} can be read, not written. Ingest into a folder or a bucket (s3://BUCKET/NAME).")
    objects = connect(url, patient=False)
    mine = _new_holder()
    with in_words(url):
        version = _take(url, objects, mine)
    done = threading.Event()
    keeper = threading.Thread(target=_refresh, args=(objects, mine, version, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        # Where the network is gone, the error of the writing is the one to tell; the hold ends by itself.
        with suppress(BaseError, OSError, MultisegError):
            left = holder_of(url)
            if left is not None and left.token == mine.token:
                obstore.delete(objects, KEY)


def check_held(url: str) -> None:
    """Whether this process still holds a store.

    Raises:
        ResourceError: it does not, or never did.
    """
    held = holder_of(url, patient=True)
    if held is None or not held.is_me():
        raise ResourceError(
            f"{url} is no longer held by this process: {held or 'nobody'} holds it. A computer that slept loses its "
            "hold. What was committed is safe; run the same command again when nobody else writes."
        )


def holder_of(url: str, patient: bool = False) -> Holder | None:
    """Who holds a store now."""
    data = read_small(url, KEY, patient)
    return None if data is None else _parse(data)


def _parse(data: bytes) -> Holder:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return Holder("an unknown computer", 0, "", "an unknown time", "", "")


def _new_holder() -> Holder:
    now = _now()
    return Holder(socket.gethostname(), os.getpid(), _machine(), now, now, uuid.uuid4().hex)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return ""


def _take(url: str, objects: Any, mine: Holder) -> dict[str, str]:
    """Put `mine` where nobody else can have put theirs since we looked; the version of what was put."""
    there = _look(objects)
    mode: Any = "create" if there is None else _may_take_over(url, objects, *there)
    try:
        obstore.put(objects, KEY, _bytes(mine), mode=mode)
    except NotSupportedError:
        log.warning("%s cannot keep two writers apart: see that only one ingests into it at a time.", url)
        obstore.put(objects, KEY, _bytes(mine))
    except (AlreadyExistsError, PreconditionError):
        pass  # somebody was faster, or an answer was lost and ours is there
    # A server that knows no conditions passes over them: then the last one to come holds it.
    held, meta = _look(objects) or (None, {})
    if held is None or held.token != mine.token:
        raise ResourceError(f"another process began to write to {url} just now: {held}. Run again when it is done.")
    return _version(meta)


def _look(objects: Any) -> tuple[Holder, Any] | None:
    try:
        found = obstore.get(objects, KEY)
    except FileNotFoundError:
        return None
    return _parse(bytes(found.bytes())), found.meta


def _may_take_over(url: str, objects: Any, held: Holder, meta: Any) -> dict[str, str]:
    """The version to replace, if its holder is dead."""
    unseen = (_server_time(objects) - meta["last_modified"]).total_seconds()
    if not held.is_dead() and unseen < STALE_SECONDS:
        raise ResourceError(
            f"another process is writing to {url}: {held} and was last seen {unseen:.0f} s ago. Wait for it, then "
            f"run again. If it has died, its hold ends {STALE_SECONDS // 60} minutes after it was last seen."
        )
    log.warning("%s: took over from %s and was last seen %.0f s ago.", url, held, unseen)
    return _version(meta)


def _server_time(objects: Any) -> datetime:
    """The server's clock: ours may be wrong by more than a hold lasts."""
    key = f"{KEY}.{uuid.uuid4().hex}"
    obstore.put(objects, key, b"")
    try:
        return obstore.head(objects, key)["last_modified"]
    finally:
        obstore.delete(objects, key)


def _refresh(objects: Any, mine: Holder, version: dict[str, str], done: threading.Event) -> None:
    while not done.wait(REFRESH_SECONDS):
        with suppress(BaseError, OSError):  # the next one may get through
            mode: Any = version or "overwrite"
            try:
                put = obstore.put(objects, KEY, _bytes(replace(mine, refreshed=_now())), mode=mode)
                version = _version(put)
            except PreconditionError:
                held, meta = _look(objects) or (None, {})
                if held is None or held.token != mine.token:
                    return  # somebody took over: the next write sees it and ends
                version = _version(meta)  # ours, but the answer to it was lost


def _bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _version(put: Any) -> dict[str, str]:
    return {name: put[name] for name in ("e_tag", "version") if put[name]}
