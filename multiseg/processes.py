"""What all who start processes share: a child dies with its parent, leaves Ctrl-C to it, and is named when it dies.

The pools (ingest, readers of patches, experiments) and the supervisors of a federation are built on this.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType
from typing import Any

ORPHAN_SECONDS = 3.0
"""How often a child looks whether its parent still runs, where nothing tells it at once."""
PARENT_DEATH = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
_prctl: Callable[..., Any] | None = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def is_running(pid: int) -> bool:
    """Whether there is a process of this number that has not ended.

    Under a first process that waits for nobody, as in many containers, whoever was killed stays in the list for good,
    and a signal reaches it: on Linux its state says that it is a zombie.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with suppress(OSError, IndexError):  # not Linux, or the process ended just now
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in {"Z", "X"}
    return True


def has_ended(pid: int) -> bool:
    """Whether a child of this process ended. It stays a zombie, so that its number is not given to another process.

    A child that somebody else has waited for, or that the kernel did not keep (SIGCHLD is ignored), has ended, too.
    """
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def how_it_ended(code: int) -> str:
    """An exit code in words: "ended with exit code 3", "was ended by SIGKILL (mostly since memory ran out)"."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    reasons = {"SIGKILL": " (mostly since memory ran out)", "SIGBUS": " (a file was cut short or its disk failed)"}
    return f"was ended by {name}{reasons.get(name, '')}"


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends (on Linux). For a child that is about to run another
    program, as `preexec_fn`."""
    if _prctl is not None:
        _prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the kernel was asked
            os._exit(1)


def end_with_parent() -> None:
    """In a child made by multiprocessing: end when its parent ends, however that ends.

    A fork server is the parent of its children by number and may outlive the process that asked for them, and a
    forked child holds the pipes of its siblings: so both the pipe and the numbers are watched.
    """
    asker, above = multiprocessing.parent_process(), os.getppid()
    pid = above if asker is None or asker.pid is None else asker.pid

    def watch() -> None:
        while os.getppid() == above and is_running(pid):
            if asker is None:
                time.sleep(ORPHAN_SECONDS)
            else:
                wait([asker.sentinel], ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def leave_signals_to_parent(numbers: Sequence[int] = (signal.SIGINT,)) -> None:
    """In a child: ignore signals that a terminal or a job sends to all processes. Only the parent decides what they
    mean."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def fork_server(*modules: str) -> BaseContext:
    """A multiprocessing context whose children are forked from a server that has imported these modules.

    The server ignores Ctrl-C: what is ignored when a process starts stays ignored in it and in its children.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    if threading.current_thread() is not threading.main_thread():
        return context  # only the main thread may set what is done with signals
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


@contextmanager
def signals_held_back() -> Iterator[None]:
    """SIGINT and SIGTERM arrive when the block ends: a child that has only just started would die of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def term_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that `finally` blocks end the children."""
    before: Any = None
    with suppress(ValueError):  # not the main thread, which alone may handle signals
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one ends the process as usual."""
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, receive)
    except ValueError:
        handlers.clear()  # only the main thread may handle signals
    try:
        yield lambda: bool(received)
    finally:
        restore()


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a child that is started in the block. What the user has set stays."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
