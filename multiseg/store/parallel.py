"""Many cases at once: on threads, processes or a dask cluster, within a budget of memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from multiseg.errors import DataError, ResourceError, UsageError

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

    A task is begun when its `bytes_of` fits into what the others leave of the budget. A worker that dies (out of
    memory, a crash in a library) takes no other task down: those that it might have died of are tried again one
    at a time, and the one that kills its worker again is done with the error WORKER_DIED.

    Raises:
        ResourceError: the cluster cannot be reached.
    """
    if workers.num == 1 and workers.kind in (THREADS, PROCESSES):
        for task in tasks:
            yield _alone(function, task, workers, bytes_of)
        return
    todo, suspects = deque(tasks), deque[Task]()
    while todo or suspects:
        with _executor(workers, len(tasks)) as executor:
            if suspects:
                yield _suspect(function, suspects.popleft(), executor)
                continue
            yield from _run(function, todo, suspects, executor, workers, bytes_of)


def _alone(
    function: Callable[[Task], Result], task: Task, workers: Workers, bytes_of: Callable[[Task], int]
) -> Done[Task, Result]:
    try:
        _check_fits(bytes_of(task), workers)
        return Done(task, function(task))
    except DataError as error:
        return Done(task, None, error)


def _run(
    function: Callable[[Task], Result],
    todo: deque[Task],
    suspects: deque[Task],
    executor: Executor,
    workers: Workers,
    bytes_of: Callable[[Task], int],
) -> Iterator[Done[Task, Result]]:
    """Until everything is done, or a worker dies: then those under way are suspects."""
    running: dict[Future[Result], tuple[Task, int]] = {}
    while todo or running:
        while todo and len(running) < workers.num:
            try:
                size = bytes_of(todo[0])
                _check_fits(size, workers)
            except DataError as error:
                yield Done(todo.popleft(), None, error)
                continue
            held = sum(size for _, size in running.values())
            if running and workers.memory_bytes is not None and held + size > workers.memory_bytes:
                break
            task = todo.popleft()
            running[executor.submit(function, task)] = task, size
        ended, _ = wait_for(running, return_when=FIRST_COMPLETED)
        for future in ended:
            task, _ = running.pop(future)
            try:
                yield Done(task, future.result())
            except DataError as error:
                yield Done(task, None, error)
            except _DEATHS as error:
                if not _is_death(error):
                    raise
                suspects.append(task)
        if suspects:
            suspects.extend(task for task, _ in running.values())
            return


def _suspect(function: Callable[[Task], Result], task: Task, executor: Executor) -> Done[Task, Result]:
    try:
        return Done(task, executor.submit(function, task).result())
    except DataError as error:
        return Done(task, None, error)
    except _DEATHS as error:
        if not _is_death(error):
            raise
        message = (
            "the process that prepared this case died twice, perhaps for want of memory. Give it more (--memory), "
            "fewer --workers, or look at its files."
        )
        return Done(task, None, DataError(message, code="WORKER_DIED"))


_DEATHS = (BrokenExecutor, RuntimeError)


def _is_death(error: BaseException) -> bool:
    # The cluster's error is told by its name, for dask.distributed need not be installed.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


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
        _check_alive(executor)
        yield executor
    finally:
        _close(executor)


def _close(executor: Executor) -> None:
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


def _check_alive(executor: Executor) -> None:
    """One easy task, so that workers that cannot even begin are not taken for victims of the cases."""
    try:
        executor.submit(default_workers).result()
    except _DEATHS as error:
        raise ResourceError(
            f"no worker process can be started ({error}). Take --workers 1; from a script of your own, call ingest "
            "below: if __name__ == '__main__'."
        ) from error


def _make_executor(workers: Workers, num: int) -> Executor:
    if workers.kind == THREADS:
        return ThreadPoolExecutor(num)
    if workers.kind == PROCESSES:
        # Not fork: this process has threads of zarr's, and holds the store's lock, which children would share.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["multiseg.store.ingest"])
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
    """In a worker process: leave Ctrl-C to the main process, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


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
