"""The main function of a worker process."""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection

from multiseg.errors import MultisegError
from multiseg.loaders.patches import PatchTask
from multiseg.loaders.workers import Doer, Work
from multiseg.processes import end_with_parent, leave_signals_to_parent


def serve(work: Work, line: Connection, parents_end: Connection | None, environment: Mapping[str, str]) -> None:
    """Do the tasks that arrive on the connection, until the parent closes it or ends.

    Ctrl-C reaches every process of a terminal, SIGTERM often every process of a job; only the parent handles them.
    """
    leave_signals_to_parent((signal.SIGINT, signal.SIGTERM))
    os.environ.update(environment)  # a fork server has the environment of its own start
    if parents_end is not None:  # a forked process has it too, and would never see it closed
        parents_end.close()
        for memory in (work.memory, work.cache):
            if memory is not None:
                memory.map_again()
    send_lock = threading.Lock()
    _log_to_parent(line, send_lock)
    end_with_parent()
    with suppress(EOFError, OSError):  # the parent has closed the connection
        _do_all(work, line, send_lock)


class _ParentHandler(logging.Handler):
    """Sends warnings to the parent, which owns the terminal and the log."""

    def __init__(self, line: Connection, send_lock: threading.Lock) -> None:
        super().__init__(logging.WARNING)
        self._line, self._send_lock = line, send_lock

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError), self._send_lock:
            self._line.send_bytes(pickle.dumps(record.getMessage()))


def _log_to_parent(line: Connection, send_lock: threading.Lock) -> None:
    logger = logging.getLogger("multiseg")
    logger.handlers[:] = [_ParentHandler(line, send_lock)]
    logger.propagate = False


def _do_all(work: Work, line: Connection, send_lock: threading.Lock) -> None:
    start_lock = threading.Lock()
    doer: Doer | None = None

    def do(task: PatchTask) -> None:
        nonlocal doer
        try:
            with start_lock:
                doer = doer or Doer(work)
            doer.do(task)
            answer: int | tuple[type[MultisegError] | None, str, str] = task.serial
        except Exception as error:  # noqa: BLE001 (every error goes to the parent)
            kind = type(error) if isinstance(error, MultisegError) else None
            answer = kind, str(error), traceback.format_exc()
        with send_lock:
            line.send_bytes(pickle.dumps(answer))

    with ThreadPoolExecutor(work.threads) as pool:
        for task in _tasks(line):
            if work.threads == 1:
                do(task)
            else:
                pool.submit(do, task)


def _tasks(line: Connection) -> Iterator[PatchTask]:
    """The tasks of a worker.

    All messages are read before a task is done: the parent may be waiting for room in the pipe.
    """
    waiting: deque[PatchTask] = deque()
    poll = select.poll()
    poll.register(line, select.POLLIN)
    while True:
        while not waiting or poll.poll(0):
            waiting.append(PatchTask(*line.recv()))
        yield waiting.popleft()
