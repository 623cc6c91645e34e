"""Worker processes on the parent's side: their tasks, their answers, and what happens when one dies."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from multiseg.errors import ResourceError
from multiseg.faults import remedy
from multiseg.loaders import serving
from multiseg.loaders.patches import PatchTask
from multiseg.loaders.workers import Work
from multiseg.processes import ORPHAN_SECONDS, fork_server, how_it_ended, signals_held_back

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Workers that may die while they read the same patch."""
LISTEN_FROM = 64
"""With this many open tasks, a worker's answers are read before it gets more: a pipe holds only some hundred messages,
and if both sides wait to write, neither reads."""
PATIENCE_SECONDS = 1.0
"""Time for a worker to finish its current patch when the stream ends."""


class _Worker:
    """A process, the connection to it, and its open tasks."""

    def __init__(self, number: int, process: BaseProcess, line: Connection) -> None:
        self.number = number
        self.process = process
        self.line = line
        self.tasks: dict[int, PatchTask] = {}
        # Made once: Connection.poll() and multiprocessing's wait() make one per call, which costs as much as a task.
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)

    def next_answer(self) -> Any:
        """Its next message; None if there is none yet, or it is dead."""
        try:
            return self.line.recv() if self._poll.poll(0) else None
        except (EOFError, OSError):  # it may even have died in the middle of a message
            self.process.join(ORPHAN_SECONDS)
            return None


class Processes:
    """Worker processes. Each task belongs to one worker, so that the tasks of a dead one are known.

    Args:
        restart: a worker that died is replaced and its tasks are done again; otherwise the stream stops.
    """

    def __init__(self, work: Work, num: int, start: str, restart: bool) -> None:
        self._work = work
        self._restart = restart
        self._context = _context(start)
        self._deaths: dict[int, int] = {}
        self._deaths_in_a_row = 0
        self._early: list[int] = []
        self._workers: list[_Worker] = []
        # At exit, multiprocessing waits for all workers, so they must be stopped before.
        self._stop = Finalize(self, _stop, (self._workers,), exitpriority=100)
        try:
            for number in range(num):
                self._workers.append(self._start(number))
        except BaseException:
            self.close()
            raise
        self._listen()

    def _listen(self) -> None:
        """Register the connections and the sentinels of all workers for polling."""
        self._poll = select.poll()
        self._lines = {worker.line.fileno(): worker for worker in self._workers}
        self._sentinels = {worker.process.sentinel: worker for worker in self._workers}
        for number in (*self._lines, *self._sentinels):
            self._poll.register(number, select.POLLIN)

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        is_forked = self._context.get_start_method() == "fork"
        process = self._context.Process(  # type: ignore[attr-defined]
            target=serving.serve,
            args=(self._work, theirs, ours if is_forked else None, dict(os.environ)),
            name=f"multiseg-reader-{number}",
            daemon=True,
        )
        try:
            with signals_held_back():
                process.start()
        except OSError as error:
            ours.close()
            raise ResourceError(
                f"cannot start a reader process: {error}. {remedy(error, 'Give fewer workers.')}"
            ) from error
        finally:
            theirs.close()
        return _Worker(number, process, ours)

    def give(self, task: PatchTask) -> None:
        worker = min(self._workers, key=lambda worker: len(worker.tasks))
        if len(worker.tasks) >= LISTEN_FROM:
            self._early += self._read_answers(worker)
        worker.tasks[task.serial] = task
        self._send(worker, task)

    @staticmethod
    def _send(worker: _Worker, task: PatchTask) -> None:
        with suppress(OSError):  # it is dead, which is handled when its work is waited for
            worker.line.send_bytes(pickle.dumps(tuple(task)))  # send() costs more than the pickling

    def done(self) -> Sequence[int]:
        serials, self._early = self._early, []
        while not serials:
            ready = [number for number, _ in self._poll.poll()]
            for worker in [self._lines[number] for number in ready if number in self._lines]:
                serials += self._read_answers(worker)
            for worker in [self._sentinels[number] for number in ready if number in self._sentinels]:
                serials += self._handle_death(worker)
        return serials

    def _read_answers(self, worker: _Worker) -> list[int]:
        """The serials of all tasks that a worker has reported as done."""
        serials: list[int] = []
        while (answer := worker.next_answer()) is not None:
            if isinstance(answer, str):
                log.warning("reader process %d: %s", worker.number, answer)
                continue
            if not isinstance(answer, int):
                kind, text, trace = answer
                raise kind(text) if kind else RuntimeError(f"a reader process failed: {text}\n{trace}")
            del worker.tasks[answer]
            self._deaths.pop(answer, None)
            serials.append(answer)
            self._deaths_in_a_row = 0
        return serials

    def _handle_death(self, worker: _Worker) -> list[int]:
        """Handle a dead worker: log it and reassign its tasks to a new one, or stop."""
        serials = self._read_answers(worker)
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"{how_it_ended(code)}{_START_HINT if code >= 0 else ''}"
        current = list(worker.tasks.values())[: self._work.threads]
        names = ", ".join(dict.fromkeys(self._work.sources.cases[task.case].name for task in current)) or "nothing"
        message = f"reader process {worker.number} (pid {worker.process.pid}) {how} while it read {names}"
        for task in current:
            self._deaths[task.serial] = self._deaths.get(task.serial, 0) + 1
        self._deaths_in_a_row = 0 if serials else self._deaths_in_a_row + 1
        is_hopeless = any(self._deaths[task.serial] >= MAX_DEATHS for task in current)
        is_hopeless |= self._deaths_in_a_row > MAX_DEATHS * len(self._workers)
        if not self._restart or is_hopeless:
            raise ResourceError(f"{message}{', as others before it' if is_hopeless else ''}. {_REMEDY}")
        log.warning("%s. Another one reads its %d patches again. %s", message, len(worker.tasks), _REMEDY)
        worker.line.close()
        fresh = self._start(worker.number)
        fresh.tasks = worker.tasks
        self._workers[self._workers.index(worker)] = fresh
        self._listen()
        for task in fresh.tasks.values():
            self._send(fresh, task)
        return serials

    def close(self) -> None:
        self._stop()


def _context(start: str) -> BaseContext:
    """A way to start processes. Its helper processes are started first, so that they do not inherit blocked signals."""
    if start != "fork":
        resource_tracker.ensure_running()
    return fork_server(serving.__name__) if start == "forkserver" else multiprocessing.get_context(start)


def _stop(workers: list[_Worker]) -> None:
    """Close the connections to the workers, and wait until they have ended."""
    for worker in workers:
        _shut_down(worker.line)
    for worker in workers:
        worker.process.join(PATIENCE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
    workers.clear()


def _shut_down(line: Connection) -> None:
    """End a connection. Closing it is not enough: processes that were forked later keep it open, too."""
    with suppress(OSError), socket.socket(fileno=os.dup(line.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
    line.close()


_START_HINT = " (see what it printed; a script that starts workers other than by fork needs if __name__ == '__main__')"
_REMEDY = "If memory ran out, give fewer workers, smaller patches or batches, or a smaller cache."
