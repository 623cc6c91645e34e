"""The life of a worker process."""

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
    """Do what is asked for on the line, until nobody is there to ask.

    Ctrl-C reaches every process of a terminal, SIGTERM often every process of a job; only the parent may decide
    what they mean. A worker ends when its parent closes the line or is gone.
    """
    leave_signals_to_parent((signal.SIGINT, signal.SIGTERM))
    os.environ.update(environment)  # a fork server has that of its own start, without what was set since
    if parents_end is not None:  # a forked process has it too, and would never see it closed
        parents_end.close()
        for memory in (work.memory, work.cache):
            if memory is not None:
                memory.map_again()
    turn = threading.Lock()
    _speak_through(line, turn)
    end_with_parent()
    with suppress(EOFError, OSError):  # nobody listens any more
        _do_all(work, line, turn)


class _Speaker(logging.Handler):
    """Lets the parent say what a worker has to say, since the terminal and the log are the parent's."""

    def __init__(self, line: Connection, turn: threading.Lock) -> None:
        super().__init__(logging.WARNING)
        self._line, self._turn = line, turn

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError), self._turn:
            self._line.send_bytes(pickle.dumps(record.getMessage()))


def _speak_through(line: Connection, turn: threading.Lock) -> None:
    ours = logging.getLogger("multiseg")
    ours.handlers[:] = [_Speaker(line, turn)]
    ours.propagate = False


def _do_all(work: Work, line: Connection, turn: threading.Lock) -> None:
    begin = threading.Lock()
    doer: Doer | None = None

    def do(task: PatchTask) -> None:
        nonlocal doer
        try:
            with begin:
                doer = doer or Doer(work)
            doer.do(task)
            answer: int | tuple[type[MultisegError] | None, str, str] = task.serial
        except Exception as error:  # noqa: BLE001 (whatever it is, the parent has to know)
            kind = type(error) if isinstance(error, MultisegError) else None
            answer = kind, str(error), traceback.format_exc()
        with turn:
            line.send_bytes(pickle.dumps(answer))

    with ThreadPoolExecutor(work.threads) as pool:
        for task in _tasks(line):
            if work.threads == 1:
                do(task)
            else:
                pool.submit(do, task)


def _tasks(line: Connection) -> Iterator[PatchTask]:
    """What a worker is told to do.

    All that was said is taken in before anything is done: the parent may be waiting for the line to have room.
    """
    waiting: deque[PatchTask] = deque()
    said = select.poll()
    said.register(line, select.POLLIN)
    while True:
        while not waiting or said.poll(0):
            waiting.append(PatchTask(*line.recv()))
        yield waiting.popleft()
