"""Worker processes, as their parent sees them: what each was given, what it answers, and what is done when it dies."""

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

from multiseg.errors import MultisegError, ResourceError
from multiseg.faults import remedy
from multiseg.loaders import serving
from multiseg.loaders.patches import PatchTask
from multiseg.loaders.workers import Work
from multiseg.processes import ORPHAN_SECONDS, fork_server, how_it_ended, signals_held_back

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Workers that may die over one and the same patch."""
LISTEN_FROM = 64
"""Tasks of a worker from which on it is listened to before it is told more: a line holds only some hundred messages,
and two who wait to speak never listen."""
PATIENCE_SECONDS = 1.0
"""What a worker has to finish the patch that it is at, when all end."""


class _Worker:
    """A process, the line to it, and what it was given and has not done."""

    def __init__(self, number: int, process: BaseProcess, line: Connection) -> None:
        self.number = number
        self.process = process
        self.line = line
        self.tasks: dict[int, PatchTask] = {}
        # Made once: Connection.poll() and multiprocessing's wait() make one at every call, at the cost of a task.
        self._ear = select.poll()
        self._ear.register(line, select.POLLIN)

    def next_answer(self) -> Any:
        """What it says next; None while it is silent, and once it is dead."""
        try:
            return self.line.recv() if self._ear.poll(0) else None
        except (EOFError, OSError):  # it may even have died in the middle of a message
            self.process.join(ORPHAN_SECONDS)
            return None


class Processes:
    """Worker processes. Each task is one worker's at a time, so that it is known whose work a death undoes.

    Args:
        restart: a worker that died is replaced and its tasks are done again; otherwise the stream ends there.
    """

    def __init__(self, work: Work, num: int, start: str, restart: bool) -> None:
        self._work = work
        self._restart = restart
        self._context = _context(start)
        self._deaths: dict[int, int] = {}
        self._deaths_in_a_row = 0
        self._early: list[int] = []
        self._workers: list[_Worker] = []
        # As the interpreter ends, multiprocessing waits for all workers; they have to be sent home before.
        self._end = Finalize(self, _end, (self._workers,), exitpriority=100)
        try:
            for number in range(num):
                self._workers.append(self._started(number))
        except BaseException:
            self.close()
            raise
        self._listen()

    def _listen(self) -> None:
        """Be woken by whatever a worker says, and by its death."""
        self._ears = select.poll()
        self._lines = {worker.line.fileno(): worker for worker in self._workers}
        self._ends = {worker.process.sentinel: worker for worker in self._workers}
        for number in (*self._lines, *self._ends):
            self._ears.register(number, select.POLLIN)

    def _started(self, number: int) -> _Worker:
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
                f"no process that reads patches can be started: {error}. {remedy(error, 'Give fewer workers.')}"
            ) from error
        finally:
            theirs.close()
        return _Worker(number, process, ours)

    def give(self, task: PatchTask) -> None:
        worker = min(self._workers, key=lambda one: len(one.tasks))
        if len(worker.tasks) >= LISTEN_FROM:
            self._early += self._heard(worker)
        worker.tasks[task.serial] = task
        self._send(worker, task)

    @staticmethod
    def _send(worker: _Worker, task: PatchTask) -> None:
        with suppress(OSError):  # it is dead, which is found and told when its work is waited for
            worker.line.send_bytes(pickle.dumps(tuple(task)))  # send() costs more than the pickling

    def done(self) -> Sequence[int]:
        serials, self._early = self._early, []
        while not serials:
            ready = [number for number, _ in self._ears.poll()]
            for worker in [self._lines[number] for number in ready if number in self._lines]:
                serials += self._heard(worker)
            for worker in [self._ends[number] for number in ready if number in self._ends]:
                serials += self._died(worker)
        return serials

    def _heard(self, worker: _Worker) -> list[int]:
        """All that a worker has said so far."""
        serials: list[int] = []
        while (answer := worker.next_answer()) is not None:
            if isinstance(answer, str):
                log.warning("reader process %d: %s", worker.number, answer)
                continue
            if not isinstance(answer, int):
                raise _told(*answer)
            del worker.tasks[answer]
            self._deaths.pop(answer, None)
            serials.append(answer)
            self._deaths_in_a_row = 0
        return serials

    def _died(self, worker: _Worker) -> list[int]:
        """Take leave of a dead worker: say so, and have another do its tasks, or end."""
        serials = self._heard(worker)
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"{how_it_ended(code)}{_HOW_IT_MAY_START if code >= 0 else ''}"
        in_hand = list(worker.tasks.values())[: self._work.threads]
        names = ", ".join(dict.fromkeys(self._work.sources.cases[task.case].name for task in in_hand)) or "nothing"
        said = f"reader process {worker.number} (pid {worker.process.pid}) {how} while it read {names}"
        for task in in_hand:
            self._deaths[task.serial] = self._deaths.get(task.serial, 0) + 1
        self._deaths_in_a_row = 0 if serials else self._deaths_in_a_row + 1
        is_hopeless = any(self._deaths[task.serial] >= MAX_DEATHS for task in in_hand)
        is_hopeless |= self._deaths_in_a_row > MAX_DEATHS * len(self._workers)
        if not self._restart or is_hopeless:
            raise ResourceError(f"{said}{', as others before it' if is_hopeless else ''}. {_REMEDY}")
        log.warning("%s. Another one reads its %d patches again. %s", said, len(worker.tasks), _REMEDY)
        worker.line.close()
        fresh = self._started(worker.number)
        fresh.tasks = worker.tasks
        self._workers[self._workers.index(worker)] = fresh
        self._listen()
        for task in fresh.tasks.values():
            self._send(fresh, task)
        return serials

    def close(self) -> None:
        self._end()


def _context(start: str) -> BaseContext:
    """A way to start processes, whose own helper processes run already and are not started with signals held back."""
    if start != "fork":
        resource_tracker.ensure_running()
    return fork_server(serving.__name__) if start == "forkserver" else multiprocessing.get_context(start)


def _end(workers: list[_Worker]) -> None:
    """Hang up on workers, and wait until they are gone."""
    for worker in workers:
        _hang_up(worker.line)
    for worker in workers:
        worker.process.join(PATIENCE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
    workers.clear()


def _hang_up(line: Connection) -> None:
    """End a line. To close it would not do: processes forked since it was made have it too, and keep it open."""
    with suppress(OSError), socket.socket(fileno=os.dup(line.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
    line.close()


_HOW_IT_MAY_START = (
    " (what it printed says why; a script that starts workers, but not by fork, needs its if __name__ == '__main__')"
)
_REMEDY = "Where memory ran out, give fewer workers, smaller patches or batches, or a smaller cache."


def _told(kind: type[MultisegError] | None, text: str, trace: str) -> Exception:
    """The error that a worker met; with its traceback where it is none of ours."""
    return kind(text) if kind else RuntimeError(f"a reader process failed: {text}\n{trace}")
