"""A small supervisor: keeps child processes running, writes their output to files, and leaves none behind."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

from multiseg.errors import FederationError
from multiseg.processes import die_with, has_ended

LOG_BYTES, LOGS_KEPT = 8 * 2**20, 3
LAST_LINES = 40
"""Of a child's output, kept to judge how it ended."""
LINE_BYTES = 64 * 2**10
"""Longer lines are split."""
SETTLED_SECONDS = 60.0
"""A child that ran this long resets its count of failures."""
TICK_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        code: its exit code; minus the signal that killed it.
        seconds: how long it ran.
        times: endings in a row, this one included, without a run of `SETTLED_SECONDS` between them.
        last_lines: of its output.
    """

    name: str
    code: int
    seconds: float
    times: int
    last_lines: tuple[str, ...]


def command_path(name: str) -> str:
    """The path of a command that was installed with Flower: next to Python, in pip's scripts folder, or in PATH.

    Raises:
        FederationError: it is in none of these.
    """
    folders = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    if path := shutil.which(name):
        return path
    listed = ", ".join(dict.fromkeys(map(str, folders)))
    raise FederationError(f"Flower's command {name} is neither in {listed} nor in PATH: reinstall multiseg.")


def backoff(ending: Ending) -> float:
    """Seconds until a child is restarted: 1, 2, 4 and so on to 30."""
    return float(min(30, 2 ** min(ending.times - 1, 5)))


@dataclass(frozen=True)
class Child:
    """A process to keep running.

    Attributes:
        environment: added to the supervisor's own.
        log: the file of its stdout and stderr; older ones are `log`.1 and so on.
        after: seconds until it is restarted; an exception ends all children and the supervisor.
        is_lost: whether the process, which has run for these seconds, no longer works: it is then killed, which counts
            as an ending.
        grace_s: between SIGTERM and SIGKILL when all children are stopped.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Callable[[Ending], float] = backoff
    grace_s: float = 20.0
    is_lost: Callable[[float], bool] = lambda seconds: False


def supervise(
    children: Sequence[Child],
    on_line: Callable[[str, str], None] = lambda name, line: None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run the children until SIGINT, SIGTERM or SIGHUP, then stop them, the last one first. A second one kills at once.

    A closing terminal sends SIGHUP; nohup ignores it, and then it stays ignored.

    Each child leads a session of its own, so Ctrl-C reaches it only through the supervisor. If the supervisor itself is
    killed, the kernel kills its children (on Linux).

    Args:
        on_line: is called with a child's name and a line of its output.
        tick: is called several times a second. An exception of either ends everything.

    Raises:
        RuntimeError: called outside the main thread, where no signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a supervisor receives signals only in the main thread.")
    with _signals() as caught, selectors.DefaultSelector() as selector:
        supervised = [_Running(child, selector, on_line) for child in children]
        try:
            while not caught:
                for child in supervised:
                    child.keep()
                _read(selector)
                tick()
        finally:
            for child in reversed(supervised):
                child.stop(lambda: len(caught) > 1)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the stop signals instead of acting on them."""
    caught: list[int] = []
    # A parent that ignores SIGCHLD passes that on, and the kernel then keeps no exit codes.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    numbers = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read(selector: selectors.BaseSelector) -> None:
    if not selector.get_map():
        time.sleep(TICK_SECONDS)
        return
    for key, _ in selector.select(TICK_SECONDS):
        key.data()


class _Running:
    """A child, its process while there is one, and its log."""

    def __init__(self, child: Child, selector: selectors.BaseSelector, on_line: Callable[[str, str], None]) -> None:
        self.child = child
        self.process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] = BytesIO()
        self._selector, self._on_line = selector, on_line
        self._due = self._started = 0.0
        self._times = 0
        self._partial = b""
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)

    def keep(self) -> None:
        """Start the process when it is due, and handle its end."""
        if self.process is None:
            if time.monotonic() >= self._due:
                self._start()
        elif has_ended(self.process.pid):
            code = self._reap()
            seconds = time.monotonic() - self._started
            self._times = 1 if seconds >= SETTLED_SECONDS else self._times + 1
            ending = Ending(self.child.name, code, seconds, self._times, tuple(self._last_lines))
            self._due = time.monotonic() + self.child.after(ending)
        elif self.child.is_lost(time.monotonic() - self._started):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, at_once: Callable[[], bool]) -> None:
        """SIGTERM, and SIGKILL after the grace or when `at_once` says so."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.child.grace_s
        while not has_ended(self.process.pid) and time.monotonic() < deadline and not at_once():
            _read(self._selector)  # a full pipe would block it
        self._reap()

    def _start(self) -> None:
        self._last_lines.clear()
        self._started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603 (our own commands)
            self.child.command,
            env={**os.environ, **self.child.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),  # safe: the supervisor has one thread
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._selector.register(self._output, selectors.EVENT_READ, self._read_output)

    def _reap(self) -> int:
        """Kill what is left of the process and its group, read its last output; its exit code."""
        assert self.process is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # before the wait, while the PID cannot be reused
        code = self.process.wait()
        while self._read_output():
            pass
        self._close_output()
        self.process = None
        return code

    def _read_output(self) -> bool:
        """Read what the process has written; whether there was anything."""
        data = b"" if self._output.closed else self._output.read(LINE_BYTES)
        if data == b"":  # every writer has closed it
            self._close_output()
        lines = (self._partial + (data or b"")).split(b"\n")
        self._partial = lines.pop()
        if self._partial and (not data or len(self._partial) > LINE_BYTES):
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r")
            self._last_lines.append(text)
            _log(self.child.log, text)
            self._on_line(self.child.name, text)
        return bool(data)

    def _close_output(self) -> None:
        if not self._output.closed:
            self._selector.unregister(self._output)
            self._output.close()


def _log(path: Path, line: str) -> None:
    with suppress(OSError):  # a full disk is not a reason to stop
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line + "\n")
            full = file.tell() > LOG_BYTES
        if full:
            for number in range(LOGS_KEPT - 1, 0, -1):
                older = path.with_name(f"{path.name}.{number}")
                if older.exists():
                    older.replace(path.with_name(f"{path.name}.{number + 1}"))
            path.replace(path.with_name(f"{path.name}.1"))
