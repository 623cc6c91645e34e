"""Runs work in a forked process: imports are shared, and the parent survives and notices when it dies."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from multiseg.processes import die_with, has_ended

LENGTH = 8
"""Bytes for the length of the result: a shorter result is incomplete."""
LOOK_SECONDS = 0.1
EXPENDABLE = 500
"""Of 1000: when memory is short, the kernel kills the work before the processes that can report its end."""


class Forked:
    """Work that runs in a process of its own and returns bytes.

    Fork only while the parent has a single thread and has not used CUDA. The work gets a function that says whether to
    stop.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], bytes]) -> None:
        self._parts: list[bytes] = []
        self._ended, self._is_open = False, True
        self._pipe, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._pipe)
            _run(work, writing, parent)
        os.close(writing)
        os.set_blocking(self._pipe, False)

    def wait(self, seconds: float) -> bool:
        """Wait at most this long; whether it ended."""
        deadline = time.monotonic() + seconds
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            select.select([self._pipe] if self._is_open else [], [], [], min(left, LOOK_SECONDS))
            self._read()
            if has_ended(self.pid):
                self._reap()
        return self._ended

    def result(self) -> bytes | None:
        """The result; None if it died before it had written all of it."""
        head, *parts = self._parts or [b""]
        data = b"".join([head[LENGTH:], *parts])
        return data if len(head) >= LENGTH and len(data) == int.from_bytes(head[:LENGTH], "little") else None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to stop, or kill it."""
        if not self._ended:
            os.kill(self.pid, number)

    def _read(self) -> None:
        """Read what has arrived."""
        while self._is_open:
            try:
                data = os.read(self._pipe, 2**20)
            except BlockingIOError:
                return
            self._parts += [data] if data else []
            self._is_open = bool(data)

    def _reap(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # processes that it started and left
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._read()
        os.close(self._pipe)
        self._ended = True


def _run(work: Callable[[Callable[[], bool]], bytes], pipe: int, parent: int) -> None:
    """Run the work in the child; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        die_with(parent)
        _be_expendable()
        asked: list[int] = []
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        data = work(lambda: bool(asked))
        with os.fdopen(pipe, "wb") as file:
            file.write(len(data).to_bytes(LENGTH, "little"))
            file.write(data)
        code = 0
    finally:  # errors go only to the site's own log
        with suppress(OSError):
            if code and not isinstance(sys.exc_info()[1], SystemExit):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _be_expendable() -> None:
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/oom_score_adj").write_text(str(EXPENDABLE))
