"""Flower's node as a process that ends as soon as it can no longer take part, so that `join` restarts it.

Flower's own command stays alive after its main thread has ended (at a failed TLS handshake, or an HTTP 500), since a
thread for the executor keeps the process; its heartbeat thread may end unnoticed; and a message lost on the way is
logged, but never requested again. Here each of these ends the process. A new one connects, the server notices and sends
its task again, and the site sends the stored answer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import httpx

from multiseg.federation.flower.flower_words import MESSAGE_IS_LOST
from multiseg.federation.identity.signing import MAY_HAVE_ACTED

PULL = "/v1/fleet/pull-messages"
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
"""Errors of a call that never reached the server."""


def beat(file: Path) -> None:
    """Record that a call was answered now, as the file's time in `time.monotonic`, which ignores clock changes."""
    now = time.monotonic_ns()
    with suppress(OSError):
        os.utime(file, ns=(now, now))  # not as content, which would fail on a full disk


def last_beat(file: Path) -> float:
    """When the last call was answered, in seconds of `time.monotonic`; minus infinity for never."""
    try:
        return file.stat().st_mtime_ns / 1e9
    except OSError:
        return -float("inf")


class Calls:
    """Watches a node's calls: whether they are answered, and whether a message was lost on the way."""

    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered
        self.lost = ""

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A client's method for one call, watched."""

        def watched(client: Any, *, path: str, **words: Any) -> Any:
            try:
                answer = call(client, path=path, **words)
            except (httpx.HTTPError, ValueError) as error:
                if path == PULL and may_have_acted(error):
                    self.lost = "a call failed in which the server may have sent a task"
                raise
            self._answered()
            if path == PULL and self.lost:
                self._end()
            return answer

        return watched

    def _end(self) -> NoReturn:
        """End the process so that Flower signs off at the server."""
        sys.stdout.write(f"{self.lost}: connecting again, so that the server sends it again.\n")
        sys.stdout.flush()
        raise SystemExit(1)


def may_have_acted(error: Exception) -> bool:
    """Whether the server may have processed a call that failed with this error."""
    if not isinstance(error, httpx.HTTPStatusError):
        return not isinstance(error, NOT_SENT)
    if error.response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
        return error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    try:
        return bool(json.loads(error.response.text)[MAY_HAVE_ACTED])
    except (ValueError, KeyError, TypeError):
        return False


class _Lost(logging.Handler):
    """Detects lost messages in Flower's log."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(MESSAGE_IS_LOST):
            self._calls.lost = "a message was lost on the way"


def or_end(beating: Callable[[Any], None]) -> Callable[[Any], None]:
    """A heartbeat sender that ends the process if it fails: without heartbeats the site counts as offline."""

    def run(sender: Any) -> None:
        is_stopped = False
        try:
            beating(sender)
            is_stopped = True
        finally:
            if not is_stopped:
                traceback.print_exc()
                _exit(1)

    return run


def main(arguments: list[str]) -> NoReturn:
    """Run until stopped: `python -m multiseg.federation.flower.node BEAT-FILE flower-supernode OPTIONS`."""
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supernode.cli.flower_supernode import flower_supernode
    from flwr.supernode.fleet_http_client import FleetHttpClient

    file = Path(arguments[0])
    sys.argv = arguments[1:]
    file.touch(mode=0o600)
    calls = Calls(lambda: beat(file))
    beat(file)
    FleetHttpClient._unary_unary = calls.around(FleetHttpClient._unary_unary)  # type: ignore[method-assign]
    HeartbeatSender._run = or_end(HeartbeatSender._run)  # type: ignore[method-assign, assignment]
    logging.getLogger("flwr").addHandler(_Lost(calls))
    code = 1
    try:
        flower_supernode()  # returns if its connection failed
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:  # `_exit`, since another thread would keep the process alive
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        _exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
