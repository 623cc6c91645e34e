"""Execute runs in several processes: what others need first, finished ones skipped, interrupted ones resumed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from multiseg.experiments.worker import RunOutcome, RunTask, is_finished, serve
from multiseg.processes import environment, fork_server, how_it_ended, term_interrupts

STOP_SECONDS = 60
"""Time for a worker to finish its step and to save, before it is killed."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""One thread per process, since --jobs sets the number of busy cores."""


@dataclass(frozen=True)
class Progress:
    """An event of a run: it is "started", "finished", "failed", or was "finished before"."""

    what: str
    task: RunTask
    seconds: float = 0.0
    failure: str = ""


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: RunTask | None = None
    since: float = field(default_factory=time.monotonic)


def execute(
    tasks: Sequence[RunTask], jobs: int, on_progress: Callable[[Progress], None] = lambda progress: None
) -> dict[str, str]:
    """Execute all tasks in `jobs` processes. Returns the reasons of failed runs by their keys.

    A run waits for those that it needs, and fails if one of them failed. The other runs continue.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the workers have saved and ended.
    """
    failures: dict[str, str] = {}
    done = set()
    waiting = []

    def fail(task: RunTask, reason: str) -> None:
        failures[task.run.key] = reason
        on_progress(Progress("failed", task, failure=reason))

    for task in tasks:
        if is_finished(task):
            done.add(task.run.key)
            on_progress(Progress("finished before", task))
        else:
            waiting.append(task)
    if not waiting:
        return failures
    with _started_workers(min(jobs, len(waiting))) as workers:
        while waiting or any(worker.task for worker in workers):
            for task in tuple(waiting):
                failed = [needed.name for needed in task.run.needs if needed.key in failures]
                if failed:
                    waiting.remove(task)
                    fail(task, f"it needs {' and '.join(failed)}, which failed")
            _assign(waiting, workers, done, on_progress)
            for index, task, outcome in _outcomes(workers):
                if outcome.failure:
                    fail(task, outcome.failure)
                else:
                    done.add(outcome.key)
                    on_progress(Progress("finished", task, outcome.seconds))
                if not workers[index].process.is_alive():
                    workers[index] = _start_worker()
    return failures


def _assign(
    waiting: list[RunTask], workers: Sequence[_Worker], done: set[str], on_progress: Callable[[Progress], None]
) -> None:
    """Give each idle worker a task for which all that it needs is done."""
    for worker in workers:
        ready = [task for task in waiting if all(needed.key in done for needed in task.run.needs)]
        # The longest first, so that all workers end at about the same time.
        task = max(ready, key=lambda task: task.run.cost, default=None)
        if worker.task is None and task is not None:
            waiting.remove(task)
            worker.task, worker.since = task, time.monotonic()
            worker.pipe.send(task)
            on_progress(Progress("started", task))


def _outcomes(workers: Sequence[_Worker]) -> list[tuple[int, RunTask, RunOutcome]]:
    """Wait until a worker has ended its task or has died. Returns the indices of such workers, tasks and outcomes."""
    busy = [worker.pipe for worker in workers if worker.task]
    ready = wait(busy) if busy else []  # wait([]) would never return
    outcomes = []
    for index, worker in enumerate(workers):
        if worker.task is None or worker.pipe not in ready:
            continue
        task, worker.task = worker.task, None
        try:
            outcome: RunOutcome = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            ending = how_it_ended(worker.process.exitcode or 0)
            reason = f"its process {ending}; the lines above may say why"
            outcome = RunOutcome(task.run.key, time.monotonic() - worker.since, reason)
        outcomes.append((index, task, outcome))
    return outcomes


@contextmanager
def _started_workers(num: int) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    with term_interrupts():
        try:
            workers += [_start_worker() for _ in range(num)]
            yield workers
        except BaseException:
            for worker in workers:
                worker.process.terminate()
            raise
        finally:
            for worker in workers:
                worker.pipe.close()
            for worker in workers:
                worker.process.join(STOP_SECONDS)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()


def _start_worker() -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    with environment(ENVIRONMENT):
        context = fork_server(RunTask.__module__, "torch._dynamo")  # which optimisers import when they are first used
        process = context.Process(target=serve, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
        process.start()
    theirs.close()
    return _Worker(process, ours)
