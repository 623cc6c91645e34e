"""Flower's node as a process that ends as soon as it can no longer take part, so that `join` starts it again.

Flower's own command stays when its main thread has ended (at a TLS handshake that fails, or an HTTP 500), since a
thread that serves the executor keeps the process; its thread of heartbeats may end unseen; and a message that was lost
on the way is logged, never asked for again. Here each of these ends the process. A new one connects, the server sees
that and sends what is due once more, and the site sends an answer that it has kept.
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
    """Write down that a call was answered now: as the file's time, in `time.monotonic`, which no clock change moves."""
    now = time.monotonic_ns()
    with suppress(OSError):
        os.utime(file, ns=(now, now))  # not as content, which a full disk would refuse


def last_beat(file: Path) -> float:
    """When a call was answered last, in seconds of `time.monotonic`; minus infinity for never."""
    try:
        return file.stat().st_mtime_ns / 1e9
    except OSError:
        return -float("inf")


class Calls:
    """What of a node's calls matters: that they are answered, and whether a message was lost on the way."""

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
                    self.lost = "a call broke off in which the server may have handed out a task"
                raise
            self._answered()
            if path == PULL and self.lost:
                self._end()
            return answer

        return watched

    def _end(self) -> NoReturn:
        """End the process by way of Flower's own farewell to the server."""
        sys.stdout.write(f"{self.lost}: connecting again, so that the server sends it again.\n")
        sys.stdout.flush()
        raise SystemExit(1)


def may_have_acted(error: Exception) -> bool:
    """Whether the server may have done what it was asked in a call that ended so."""
    if not isinstance(error, httpx.HTTPStatusError):
        return not isinstance(error, NOT_SENT)
    if error.response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
        return error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    try:
        return bool(json.loads(error.response.text)[MAY_HAVE_ACTED])
    except (ValueError, KeyError, TypeError):
        return False


class _Lost(logging.Handler):
    """Hears in Flower's log that a message was lost."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(MESSAGE_IS_LOST):
            self._calls.lost = "a message was lost on the way"


def or_end(beating: Callable[[Any], None]) -> Callable[[Any], None]:
    """A sender of heartbeats that ends the process where it fails: without them the site counts as away."""

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
        flower_supernode()  # returns where its connection failed
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:  # every way out leads past the thread that would keep the process
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        _exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
