"""A small supervisor: keeps child processes running, writes what they say to files, and leaves none behind."""

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
from pathlib import Path

from multiseg.errors import FederationError
from multiseg.processes import die_with, has_ended

LOG_BYTES, LOGS_KEPT = 8 * 2**20, 3
LAST_LINES = 40
"""Of what a child said, kept for whoever judges its end."""
LINE_BYTES = 64 * 2**10
"""A line may be so long; what is longer comes in pieces."""
SETTLED_SECONDS = 60.0
"""A child that ran so long starts its count of failures anew."""
TICK_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        code: its exit code; minus the signal that killed it.
        seconds: how long it ran.
        times: endings in a row, this one included, without a run of `SETTLED_SECONDS` between them.
        said: its last lines.
    """

    name: str
    code: int
    seconds: float
    times: int
    said: tuple[str, ...]


def command_path(name: str) -> str:
    """Where a command lies that was installed with Flower: beside Python, where pip puts scripts, or in PATH.

    Raises:
        FederationError: nowhere.
    """
    places = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    found = next((str(folder / name) for folder in places if (folder / name).is_file()), None) or shutil.which(name)
    if found is None:
        listed = ", ".join(dict.fromkeys(map(str, places)))
        raise FederationError(f"Flower's command {name} is neither in {listed} nor in PATH: install multiseg anew.")
    return found


def backoff(ending: Ending) -> float:
    """Seconds until a child is started again: 1, 2, 4 and so on to 30."""
    return float(min(30, 2 ** min(ending.times - 1, 5)))


@dataclass(frozen=True)
class Child:
    """A process to keep running.

    Attributes:
        environment: said on top of the supervisor's own.
        log: the file of what it says, stdout and stderr; older ones are `log`.1 and so on.
        after: seconds until it is started again; what it raises ends all children and the supervisor.
        is_lost: whether the process, which has run so many seconds, is of no use any more: it is then killed, which
            counts as an ending.
        grace_s: between SIGTERM and SIGKILL when all is stopped.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Callable[[Ending], float] = backoff
    grace_s: float = 20.0
    is_lost: Callable[[float], bool] = lambda seconds: False


def _unheard(name: str, line: str) -> None:
    pass


def _idle() -> None:
    pass


def supervise(
    children: Sequence[Child],
    heard: Callable[[str, str], None] = _unheard,
    tick: Callable[[], None] = _idle,
) -> None:
    """Run the children until SIGINT, SIGTERM or SIGHUP, then stop them, the last one first. A second one kills at once.

    A terminal that closes sends SIGHUP; under nohup, which has it ignored, it stays so.

    Each child leads a session of its own: Ctrl-C reaches it through the supervisor alone. If the supervisor itself is
    killed, the kernel kills its children (on Linux).

    Args:
        heard: is called with a child's name and a line that it said.
        tick: is called several times a second. What either raises ends everything.

    Raises:
        RuntimeError: called from another thread than the main one, where no signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a supervisor hears signals only in the main thread.")
    with _signals() as caught, selectors.DefaultSelector() as selector:
        running = [_Running(child, selector, heard) for child in children]
        try:
            while not caught:
                for one in running:
                    one.keep()
                _read(selector)
                tick()
        finally:
            for one in reversed(running):
                one.stop(lambda: len(caught) > 1)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came; they do nothing else meanwhile. How children end is heard, though who started us may have
    had that ignored, where the kernel keeps no exit code."""
    caught: list[int] = []
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    heard = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in heard}
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

    def __init__(self, child: Child, selector: selectors.BaseSelector, heard: Callable[[str, str], None]) -> None:
        self.child = child
        self.process: subprocess.Popen[bytes] | None = None
        self._selector, self._heard = selector, heard
        self._due = self._started = 0.0
        self._times = 0
        self._rest = b""
        self._said: deque[str] = deque(maxlen=LAST_LINES)

    def keep(self) -> None:
        """Start the process when it is due; judge its end."""
        if self.process is None:
            if time.monotonic() >= self._due:
                self._start()
        elif has_ended(self.process.pid):
            code = self._bury()
            seconds = time.monotonic() - self._started
            self._times = 1 if seconds >= SETTLED_SECONDS else self._times + 1
            ending = Ending(self.child.name, code, seconds, self._times, tuple(self._said))
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
        until = time.monotonic() + self.child.grace_s
        while not has_ended(self.process.pid) and time.monotonic() < until and not at_once():
            _read(self._selector)  # a full pipe would hold it up
        self._bury()

    def _start(self) -> None:
        self._said.clear()
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
        os.set_blocking(self.process.stdout.fileno(), False)
        self._selector.register(self.process.stdout, selectors.EVENT_READ, self._hear)

    def _bury(self) -> int:
        """Kill what is left of the process and its group, read its last words; its exit code."""
        assert self.process is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # before it is waited for, while the number is its own
        code = self.process.wait()
        while self._hear():
            pass
        self._forget()
        self.process = None
        return code

    def _hear(self) -> bool:
        """Read what the process says; whether there was anything."""
        assert self.process is not None
        assert self.process.stdout is not None
        data = b"" if self.process.stdout.closed else self.process.stdout.read(LINE_BYTES)
        if data == b"":  # every writer has closed it
            self._forget()
        lines = (self._rest + (data or b"")).split(b"\n")
        self._rest = lines.pop()
        if self._rest and (not data or len(self._rest) > LINE_BYTES):
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r")
            self._said.append(text)
            _log(self.child.log, text)
            self._heard(self.child.name, text)
        return bool(data)

    def _forget(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            self._selector.unregister(self.process.stdout)
            self.process.stdout.close()


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
