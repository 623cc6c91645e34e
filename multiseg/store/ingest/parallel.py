"""Running tasks in parallel on threads, processes or a dask cluster, within a memory budget."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from multiseg.errors import DataError, ResourceError, UsageError
from multiseg.processes import end_with_parent, fork_server, leave_signals_to_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

THREADS, PROCESSES = "threads", "processes"
CLUSTER_TIMEOUT_S = 20
FIRST_WORKER_S = 600.0
"""How long a cluster may take to start its first worker, as one that grows with its work does."""


@dataclass(frozen=True)
class Workers:
    """The workers that run tasks, and the memory that they may use together.

    Attributes:
        num: the number of workers; on a cluster, the number of tasks that are sent ahead.
        kind: "processes" (a crash affects one case), "threads" (no start-up time), or the address of a dask scheduler
            such as "tcp://node1:8786", whose workers see the source files under the same paths.
        memory_bytes: for all running tasks together; None for no limit.

    Raises:
        UsageError: fewer than one worker, or an unknown kind.
    """

    num: int = 1
    kind: str = PROCESSES
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.num < 1:
            raise UsageError(f"the number of workers is {self.num}; give at least 1.")
        if self.kind not in (THREADS, PROCESSES) and "://" not in self.kind:
            raise UsageError(
                f"{self.kind!r} is neither {THREADS}, {PROCESSES} nor the address of a dask scheduler (tcp://HOST:PORT)."
            )


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A finished task with its result or its error."""

    task: Task
    result: Result | None
    error: DataError | None = None


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: Workers,
    bytes_of: Callable[[Task], int] = lambda task: 0,
) -> Iterator[Done[Task, Result]]:
    """Run all tasks and yield each as it finishes. A task that raises a DataError is done with that error.

    A task starts when its `bytes_of`, called once, fits into the memory budget together with all tasks that run or
    whose results are not yet fetched. If it runs out of memory all the same, it is done with the error OUT_OF_MEMORY.
    A worker that dies (out of memory, a crash in a library) does not affect other tasks: those that may have killed it
    are run again one at a time, and a task whose worker dies again is done with the error WORKER_DIED.

    Raises:
        ResourceError: the cluster cannot be reached or ends, or no worker process can start.
    """
    waiting = [_Waiting(task, bytes_of) for task in tasks]
    if workers.num == 1 and workers.kind in (THREADS, PROCESSES):
        for task in waiting:
            yield _run_here(function, task, workers)
        return
    todo, suspects = deque(waiting), deque[Task]()
    while todo or suspects:
        with _executor(workers, len(tasks)) as executor:
            pool = _Pool(function, executor, workers, _death_errors(workers), _closed_errors(workers))
            if suspects:
                yield pool.run_alone(suspects.popleft())
                continue
            yield from _run(pool, todo, suspects)


@dataclass(frozen=True)
class _Waiting(Generic[Task]):
    """A task that has not started."""

    task: Task
    bytes_of: Callable[[Task], int]

    @cached_property
    def num_bytes(self) -> int:
        """Computed once and as late as possible, since it may read headers."""
        return self.bytes_of(self.task)


def _run_here(function: Callable[[Task], Result], waiting: _Waiting[Task], workers: Workers) -> Done[Task, Result]:
    try:
        _check_fits(waiting.num_bytes, workers)
        return Done(waiting.task, function(waiting.task))
    except DataError as error:
        return Done(waiting.task, None, error)
    except MemoryError as error:
        return Done(waiting.task, None, _out_of_memory(error))


def _run(pool: _Pool[Task, Result], todo: deque[_Waiting[Task]], suspects: deque[Task]) -> Iterator[Done[Task, Result]]:
    """Run until all tasks are done or a worker dies; the tasks that failed with it become suspects."""
    while True:
        yield from pool.start(todo)
        if not pool.running:
            return
        ended, _ = futures.wait(pool.running, return_when=futures.FIRST_COMPLETED)
        for future in ended:
            task = pool.running.pop(future).task
            done = pool.outcome(task, future)
            # Start the next tasks first, so that no worker is idle while the caller writes this result.
            refused = pool.start(todo)
            if done is None:
                suspects.append(task)
            else:
                yield done
            yield from refused


@dataclass
class _Pool(Generic[Task, Result]):
    """An executor and its running tasks. `is_broken`: a worker died, so that no more tasks start in it."""

    function: Callable[[Task], Result]
    executor: Executor
    workers: Workers
    death_errors: tuple[type[Exception], ...]
    closed_errors: tuple[type[Exception], ...]
    running: dict[Future[Result], _Waiting[Task]] = field(default_factory=dict)
    is_broken: bool = False

    def start(self, todo: deque[_Waiting[Task]]) -> list[Done[Task, Result]]:
        """Start as many tasks as workers and memory allow. Returns tasks that can never start, with their errors."""
        refused: list[Done[Task, Result]] = []
        while todo and not self.is_broken and self._has_free_worker():
            waiting = todo[0]
            try:
                _check_fits(waiting.num_bytes, self.workers)
            except DataError as error:
                refused.append(Done(todo.popleft().task, None, error))
                continue
            if not self._has_memory(waiting.num_bytes):
                break
            future = self._submit(waiting.task)
            if future is not None:
                self.running[future] = todo.popleft()
        return refused

    def _submit(self, task: Task) -> Future[Result] | None:
        """Submit a task; None if a worker has died, so that the task was not started."""
        try:
            return self.executor.submit(self.function, task)
        except self.closed_errors as error:
            raise _gone(self.workers) from error
        except self.death_errors:
            self.is_broken = True
            return None

    def _has_free_worker(self) -> bool:
        # Unfetched results occupy no worker, but would pile up if the consumer is slow: limit them too.
        num_at_work = sum(not future.done() for future in self.running)
        return num_at_work < self.workers.num and len(self.running) < 2 * self.workers.num

    def _has_memory(self, num_bytes: int) -> bool:
        num_used = sum(waiting.num_bytes for waiting in self.running.values())
        return (
            not self.running or self.workers.memory_bytes is None or num_used + num_bytes <= self.workers.memory_bytes
        )

    def outcome(self, task: Task, future: Future[Result]) -> Done[Task, Result] | None:
        """The outcome of a task that has ended; None if its worker died."""
        try:
            return Done(task, future.result())
        except DataError as error:
            return Done(task, None, error)
        except MemoryError as error:
            return Done(task, None, _out_of_memory(error))
        except self.closed_errors as error:
            raise _gone(self.workers) from error
        except self.death_errors:
            self.is_broken = True
            return None

    def run_alone(self, task: Task) -> Done[Task, Result]:
        """Run a task that may have killed its worker, with no other task beside it."""
        future = self._submit(task)
        done = None if future is None else self.outcome(task, future)
        if done is not None:
            return done
        message = (
            "the process that prepared this case died twice, perhaps because it ran out of memory. Allow more memory "
            "(--memory), use fewer --workers, or check the files of the case."
        )
        return Done(task, None, DataError(message, code="WORKER_DIED"))


def _death_errors(workers: Workers) -> tuple[type[Exception], ...]:
    """The exceptions that mean that a worker died, not that its task failed."""
    if workers.kind in (THREADS, PROCESSES):
        return (BrokenExecutor,)
    from distributed import KilledWorker

    return BrokenExecutor, KilledWorker


def _closed_errors(workers: Workers) -> tuple[type[Exception], ...]:
    """The exceptions that mean that the scheduler of a cluster is gone."""
    if workers.kind in (THREADS, PROCESSES):
        return (CancelledError,)  # nobody here cancels a task
    from distributed.client import ClosedClientError

    return CancelledError, ClosedClientError


def _out_of_memory(error: MemoryError) -> DataError:
    return DataError(
        f"there was not enough memory to prepare this case ({str(error) or 'the system gave no more'}). Use fewer "
        "--workers, or a smaller --memory, so that fewer cases are prepared at once.",
        code="OUT_OF_MEMORY",
    )


def _check_fits(size: int, workers: Workers) -> None:
    if workers.memory_bytes is not None and size > workers.memory_bytes:
        raise DataError(
            f"preparing this case needs about {size / 1e9:.1f} GB of memory, but only {workers.memory_bytes / 1e9:.1f} "
            "GB are allowed. Allow more with --memory.",
            code="OUT_OF_MEMORY",
        )


@contextmanager
def _executor(workers: Workers, num_tasks: int) -> Iterator[Executor]:
    executor = _make_executor(workers, max(1, min(workers.num, num_tasks)))
    try:
        _check_alive(executor, workers)
        yield executor
    except BaseException:
        _abandon(executor)
        raise
    executor.shutdown()
    if not isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor):
        executor._client.close()  # type: ignore[attr-defined]


def _abandon(executor: Executor) -> None:
    """Stop without waiting for running tasks, after Ctrl-C: none of them has written to the store."""
    if isinstance(executor, ThreadPoolExecutor):
        executor.shutdown(cancel_futures=True)
    elif isinstance(executor, ProcessPoolExecutor):
        processes = list((executor._processes or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
    else:
        executor.shutdown(wait=False)
        executor._client.close()  # type: ignore[attr-defined]


def _check_alive(executor: Executor, workers: Workers) -> None:
    """Run a trivial task: if workers cannot even start, the cases are not to blame.

    Raises:
        ResourceError: none starts, or a cluster has none within `FIRST_WORKER_S`.
    """
    failures: tuple[type[Exception], ...] = (RuntimeError, *_death_errors(workers))
    try:
        first = executor.submit(default_workers)
        first.result(FIRST_WORKER_S if workers.kind not in (THREADS, PROCESSES) else None)
    except TimeoutError as error:
        raise ResourceError(
            f"the dask scheduler at {workers.kind} answers, but no worker has started within {FIRST_WORKER_S:g} s. "
            "Start its workers, and run the command again."
        ) from error
    except _closed_errors(workers) as error:
        raise _gone(workers) from error
    except failures as error:
        raise ResourceError(
            f"cannot start a worker process ({error}). Use --workers 1; in your own script, call ingest "
            "under: if __name__ == '__main__'."
        ) from error


def _gone(workers: Workers) -> ResourceError:
    return ResourceError(
        f"the dask scheduler at {workers.kind} ended or was disconnected. What is finished is kept: start it and its "
        "workers, and run the command again."
    )


def _make_executor(workers: Workers, num: int) -> Executor:
    if workers.kind == THREADS:
        return ThreadPoolExecutor(num)
    if workers.kind == PROCESSES:
        # Not fork: this process has zarr's threads, and holds the store's lock, which forked children would share.
        context = fork_server("multiseg.store.ingest.ingestion")
        return ProcessPoolExecutor(num, context, initializer=_prepare_worker)
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            f"a cluster needs dask.distributed ({error}). Install it in the folder of multiseg with: "
            "pip install '.[cluster]'."
        ) from error
    try:
        client: Any = Client(workers.kind, timeout=CLUSTER_TIMEOUT_S, set_as_default=False)  # type: ignore[no-untyped-call]
        executor: Executor = client.get_executor(pure=False)
    except OSError as error:
        raise ResourceError(f"no dask scheduler answers at {workers.kind}: {error}. Check its address.") from error
    return executor


def _prepare_worker() -> None:
    leave_signals_to_parent()
    end_with_parent()


def default_workers() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def default_memory_bytes() -> int:
    """Three quarters of the memory that is free now, on this machine and in this container."""
    values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(values["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # "max", which is not a number, means no limit
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return max(0, free) * 3 // 4
