"""Many cases at once: on threads, processes or a dask cluster, within a budget of memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures import wait as wait_for
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


@dataclass(frozen=True)
class Workers:
    """Who does the work, and how much memory all of them may take together.

    Attributes:
        num: workers at once; on a cluster, tasks that are sent ahead.
        kind: "processes" (a crash hurts one case), "threads" (no start-up time), or the address of a dask
            scheduler such as "tcp://node1:8786", whose workers see the source files under the same paths.
        memory_bytes: of all tasks at once; None for no bound.

    Raises:
        UsageError: fewer than one worker, or a kind that is none of these.
    """

    num: int = 1
    kind: str = PROCESSES
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.num < 1:
            raise UsageError(f"{self.num} workers do nothing; give at least 1.")
        if self.kind not in (THREADS, PROCESSES) and "://" not in self.kind:
            raise UsageError(
                f"{self.kind!r} is neither {THREADS}, {PROCESSES} nor the address of a dask scheduler (tcp://HOST:PORT)."
            )


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A task with its result or the error it ended in."""

    task: Task
    result: Result | None
    error: DataError | None = None


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: Workers,
    bytes_of: Callable[[Task], int] = lambda task: 0,
) -> Iterator[Done[Task, Result]]:
    """Results as they come, each task once. A task that raises a DataError is done with that error.

    A task is begun when its `bytes_of`, asked for once, fits into what the others leave of the budget, those counted
    whose results wait; one that runs out of memory all the same is done with the error OUT_OF_MEMORY. A worker that
    dies (out of memory, a crash in a library) takes no other task down: those that it might have died of are tried
    again one at a time, and the one that kills its worker again is done with the error WORKER_DIED.

    Raises:
        ResourceError: the cluster cannot be reached.
    """
    waiting = [_Waiting(task, bytes_of) for task in tasks]
    if workers.num == 1 and workers.kind in (THREADS, PROCESSES):
        for one in waiting:
            yield _alone(function, one, workers)
        return
    todo, suspects = deque(waiting), deque[Task]()
    while todo or suspects:
        with _executor(workers, len(tasks)) as executor:
            crew = _Crew(function, executor, workers, _deaths(workers))
            if suspects:
                yield crew.do_alone(suspects.popleft())
                continue
            yield from _run(crew, todo, suspects)


@dataclass(frozen=True)
class _Waiting(Generic[Task]):
    """A task that is to come."""

    task: Task
    bytes_of: Callable[[Task], int]

    @cached_property
    def num_bytes(self) -> int:
        """Asked for once and late, for it may read headers."""
        return self.bytes_of(self.task)


def _alone(function: Callable[[Task], Result], waiting: _Waiting[Task], workers: Workers) -> Done[Task, Result]:
    try:
        _check_fits(waiting.num_bytes, workers)
        return Done(waiting.task, function(waiting.task))
    except DataError as error:
        return Done(waiting.task, None, error)
    except MemoryError as error:
        return Done(waiting.task, None, _out_of_memory(error))


def _run(crew: _Crew[Task, Result], todo: deque[_Waiting[Task]], suspects: deque[Task]) -> Iterator[Done[Task, Result]]:
    """Until everything is done, or a worker dies: then those that ended with it are suspects."""
    while True:
        yield from crew.begin(todo)
        if not crew.running:
            return
        ended, _ = wait_for(crew.running, return_when=FIRST_COMPLETED)
        for future in ended:
            task = crew.running.pop(future).task
            done = crew.outcome(task, future)
            # What comes next is begun first, so that nobody is idle while this result is written.
            refused = crew.begin(todo)
            if done is None:
                suspects.append(task)
            else:
                yield done
            yield from refused


@dataclass
class _Crew(Generic[Task, Result]):
    """An executor, what is under way in it, and whether a worker died, after which nothing is begun in it."""

    function: Callable[[Task], Result]
    executor: Executor
    workers: Workers
    deaths: tuple[type[Exception], ...]
    running: dict[Future[Result], _Waiting[Task]] = field(default_factory=dict)
    is_broken: bool = False

    def begin(self, todo: deque[_Waiting[Task]]) -> list[Done[Task, Result]]:
        """Begin what the workers and the memory have room for; those come back that cannot be begun at all."""
        refused: list[Done[Task, Result]] = []
        while todo and not self.is_broken and self._has_hands():
            waiting = todo[0]
            try:
                _check_fits(waiting.num_bytes, self.workers)
            except DataError as error:
                refused.append(Done(todo.popleft().task, None, error))
                continue
            if not self._has_memory(waiting.num_bytes):
                break
            future = self._submitted(waiting.task)
            if future is not None:
                self.running[future] = todo.popleft()
        return refused

    def _submitted(self, task: Task) -> Future[Result] | None:
        """None where a worker has died since: the task has not been begun."""
        try:
            return self.executor.submit(self.function, task)
        except self.deaths:
            self.is_broken = True
            return None

    def _has_hands(self) -> bool:
        # Results that wait to be fetched take no worker, but they pile up where the consumer is slow.
        num_at_work = sum(not future.done() for future in self.running)
        return num_at_work < self.workers.num and len(self.running) < 2 * self.workers.num

    def _has_memory(self, num_bytes: int) -> bool:
        held = sum(waiting.num_bytes for waiting in self.running.values())
        return not self.running or self.workers.memory_bytes is None or held + num_bytes <= self.workers.memory_bytes

    def outcome(self, task: Task, future: Future[Result]) -> Done[Task, Result] | None:
        """A task that has ended; None where its worker died."""
        try:
            return Done(task, future.result())
        except DataError as error:
            return Done(task, None, error)
        except MemoryError as error:
            return Done(task, None, _out_of_memory(error))
        except self.deaths:
            self.is_broken = True
            return None

    def do_alone(self, task: Task) -> Done[Task, Result]:
        """A task that a worker may have died of, with no other at its side."""
        future = self._submitted(task)
        done = None if future is None else self.outcome(task, future)
        if done is not None:
            return done
        message = (
            "the process that prepared this case died twice, perhaps for want of memory. Give it more (--memory), "
            "fewer --workers, or look at its files."
        )
        return Done(task, None, DataError(message, code="WORKER_DIED"))


def _deaths(workers: Workers) -> tuple[type[Exception], ...]:
    """The errors that say that a worker died, not that its task went wrong."""
    if workers.kind in (THREADS, PROCESSES):
        return (BrokenExecutor,)
    from distributed import KilledWorker

    return BrokenExecutor, KilledWorker


def _out_of_memory(error: MemoryError) -> DataError:
    return DataError(
        f"there was not enough memory to prepare this case ({str(error) or 'the system gave no more'}). Take fewer "
        "--workers, or a smaller --memory so that fewer cases are prepared at once.",
        code="OUT_OF_MEMORY",
    )


def _check_fits(size: int, workers: Workers) -> None:
    if workers.memory_bytes is not None and size > workers.memory_bytes:
        raise DataError(
            f"the case needs about {size / 1e9:.1f} GB of memory to be prepared, and {workers.memory_bytes / 1e9:.1f} "
            "GB are allowed. Give more with --memory.",
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
    """After Ctrl-C nobody waits for what is under way: nothing of it is in the store."""
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
    """One easy task, so that workers that cannot even begin are not taken for victims of the cases."""
    failures: tuple[type[Exception], ...] = (RuntimeError, *_deaths(workers))
    try:
        executor.submit(default_workers).result()
    except failures as error:
        raise ResourceError(
            f"no worker process can be started ({error}). Take --workers 1; from a script of your own, call ingest "
            "below: if __name__ == '__main__'."
        ) from error


def _make_executor(workers: Workers, num: int) -> Executor:
    if workers.kind == THREADS:
        return ThreadPoolExecutor(num)
    if workers.kind == PROCESSES:
        # Not fork: this process has threads of zarr's, and holds the store's lock, which children would share.
        context = fork_server("multiseg.store.ingest.ingest")
        return ProcessPoolExecutor(num, context, initializer=_begin_worker)
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(f"a cluster needs dask.distributed ({error}): pip install 'multiseg[cluster]'.") from error
    try:
        client: Any = Client(workers.kind, timeout=CLUSTER_TIMEOUT_S, set_as_default=False)  # type: ignore[no-untyped-call]
        executor: Executor = client.get_executor(pure=False)
    except OSError as error:
        raise ResourceError(f"no dask scheduler answers at {workers.kind}: {error}.") from error
    return executor


def _begin_worker() -> None:
    leave_signals_to_parent()
    end_with_parent()


def default_workers() -> int:
    """As many as there are processors to run on."""
    return len(os.sched_getaffinity(0))


def default_memory_bytes() -> int:
    """Three quarters of the memory that is free now, to this machine and to this container."""
    values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(values["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # no limit is "max", and no number
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return max(0, free) * 3 // 4
