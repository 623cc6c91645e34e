"""Runs in a few processes: parents first, what is finished skipped, what was cut short gone on with."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from multiseg.experiments.worker import RunOutcome, RunTask, is_finished, serve
from multiseg.processes import environment, how_it_ended, term_interrupts

KIND_SECONDS = 60
"""How long a worker that is asked to stop may take to finish its step and to save."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""One thread each: there are as many processes as the user wants cores busy."""


@dataclass(frozen=True)
class Progress:
    """What happened to a run: it "started", was "finished", "failed", or had been "finished before"."""

    what: str
    task: RunTask
    seconds: float = 0.0
    failure: str = ""


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: RunTask | None = None
    since: float = field(default_factory=time.monotonic)


def execute(
    tasks: Sequence[RunTask], jobs: int, on_progress: Callable[[Progress], None] = lambda progress: None
) -> dict[str, str]:
    """Do all tasks in `jobs` processes; by run's key, why it failed, for those that did.

    A run waits for its parent; where that failed it fails, too, and the others go on.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the workers have saved and ended.
    """
    failures: dict[str, str] = {}
    done = set()
    todo = []
    for task in tasks:
        if is_finished(task):
            done.add(task.run.key)
            on_progress(Progress("finished before", task))
        else:
            todo.append(task)
    if not todo:
        return failures
    with _crew(min(jobs, len(todo))) as crew:
        while todo or any(worker.task for worker in crew):
            for task in _without_parent(todo, failures):
                _fail(task, f"its parent, {_parent_name(task)}, failed", failures, on_progress)
            _hand_out(todo, crew, done, on_progress)
            for at, task, outcome in _answers(crew):
                if outcome.failure:
                    _fail(task, outcome.failure, failures, on_progress)
                else:
                    done.add(outcome.key)
                    on_progress(Progress("finished", task, outcome.seconds))
                if not crew[at].process.is_alive():
                    crew[at] = _hire()
    return failures


def _parent_name(task: RunTask) -> str:
    return task.run.parent.name if task.run.parent else ""


def _without_parent(todo: list[RunTask], failures: Mapping[str, str]) -> list[RunTask]:
    """Take those out whose parent failed."""
    lost = [task for task in todo if task.run.parent and task.run.parent.key in failures]
    for task in lost:
        todo.remove(task)
    return lost


def _fail(task: RunTask, why: str, failures: dict[str, str], on_progress: Callable[[Progress], None]) -> None:
    failures[task.run.key] = why
    on_progress(Progress("failed", task, failure=why))


def _hand_out(
    todo: list[RunTask], crew: Sequence[_Worker], done: set[str], on_progress: Callable[[Progress], None]
) -> None:
    for worker in crew:
        ready = [task for task in todo if task.run.parent is None or task.run.parent.key in done]
        task = max(ready, key=lambda task: task.run.cost, default=None)  # long ones first: the ends meet better
        if worker.task is None and task is not None:
            todo.remove(task)
            worker.task, worker.since = task, time.monotonic()
            worker.pipe.send(task)
            on_progress(Progress("started", task))


def _answers(crew: Sequence[_Worker]) -> list[tuple[int, RunTask, RunOutcome]]:
    """Wait until some worker has ended its task, or has died at it."""
    busy = [worker.pipe for worker in crew if worker.task]
    ready = wait(busy) if busy else []  # for nobody it would wait for ever
    found = []
    for at, worker in enumerate(crew):
        if worker.task is None or worker.pipe not in ready:
            continue
        task, worker.task = worker.task, None
        try:
            outcome: RunOutcome = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            how = how_it_ended(worker.process.exitcode or 0)
            why = f"its process {how}; the lines above may say why"
            outcome = RunOutcome(task.run.key, time.monotonic() - worker.since, why)
        found.append((at, task, outcome))
    return found


@contextmanager
def _crew(num: int) -> Iterator[list[_Worker]]:
    crew: list[_Worker] = []
    with term_interrupts():
        try:
            crew += [_hire() for _ in range(num)]
            yield crew
        except BaseException:
            for worker in crew:
                worker.process.terminate()
            raise
        finally:
            for worker in crew:
                worker.pipe.close()
            for worker in crew:
                worker.process.join(KIND_SECONDS)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()


def _hire() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    with environment(ENVIRONMENT):
        process.start()
    theirs.close()
    return _Worker(process, ours)
