"""Many cases at once: every result comes once, memory stays bounded, and a death takes nobody along."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster
from distributed.client import ClosedClientError

from multiseg.errors import DataError, ResourceError, UsageError
from multiseg.store.ingest import ingestion, parallel
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.ingest.parallel import Workers, default_memory_bytes, run_tasks
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest

SPACING_MM = (10.0, 10.0, 10.0)


def square(number: int) -> int:
    if number == 3:
        raise DataError("three is no number", code="THREE", file="3.nii")
    return number * number


def die_of_five(number: int) -> int:
    if number == 5:
        os._exit(9)
    return number


def ask_for_too_much(number: int) -> int:
    if number == 2:
        raise MemoryError("8 TiB")
    return number


def fail(number: int) -> int:
    raise ZeroDivisionError(number)


@contextmanager
def two_workers(**options: object) -> Iterator[LocalCluster]:
    """A cluster of two processes, forked from one that has imported what they need."""
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, **options) as cluster,
    ):
        yield cluster


@pytest.mark.parametrize("workers", [Workers(1), Workers(3, "threads"), Workers(2, "processes")])
def test_every_task_is_done_once(workers: Workers) -> None:
    done = {one.task: one for one in run_tasks(square, list(range(8)), workers)}
    assert {task: one.result for task, one in done.items() if task != 3} == {n: n * n for n in range(8) if n != 3}
    error = done[3].error
    assert isinstance(error, DataError)
    assert (error.code, error.file, str(error)) == ("THREE", "3.nii", "three is no number")


def test_a_bug_is_not_taken_for_bad_data() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(fail, [1, 2], Workers(2, "threads")))


def test_a_worker_that_dies_takes_no_other_task_along() -> None:
    done = {one.task: one for one in run_tasks(die_of_five, list(range(9)), Workers(2, "processes"))}
    assert sorted(done) == list(range(9))
    assert [task for task, one in done.items() if one.error] == [5]
    assert done[5].error.code == "WORKER_DIED"


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_dies_takes_no_other_task_along() -> None:
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), two_workers(silence_logs=50) as cluster:
        done = {one.task: one for one in run_tasks(die_of_five, [4, 5, 6], Workers(2, cluster.scheduler_address))}
    assert {task: one.result for task, one in done.items()} == {4: 4, 5: None, 6: 6}
    assert done[5].error.code == "WORKER_DIED"


def test_a_worker_that_dies_while_results_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool says so when the next task is given to it: that one has not been begun, and none is lost."""
    given = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
            given.append(args)
            if len(given) == 5:
                raise BrokenProcessPool("a process was terminated abruptly")
            return super().submit(function, *args, **named)

    monkeypatch.setattr("multiseg.store.ingest.parallel._make_executor", lambda workers, num: Pool(num))
    done = list(run_tasks(abs, list(range(7)), Workers(2, "processes")))
    assert sorted(one.result for one in done) == list(range(7))
    assert len(given) == 7 + 1 + 2  # one in vain, and the trial of each of two pools


@pytest.mark.parametrize("workers", [Workers(1), Workers(2, "threads"), Workers(2, "processes")])
def test_a_task_that_runs_out_of_memory_is_done(workers: Workers) -> None:
    done = {one.task: one for one in run_tasks(ask_for_too_much, [1, 2, 3], workers)}
    assert {task: one.result for task, one in done.items()} == {1: 1, 2: None, 3: 3}
    assert done[2].error.code == "OUT_OF_MEMORY"
    assert "8 TiB" in str(done[2].error)


def test_the_next_task_is_begun_before_a_result_is_written() -> None:
    begun = [threading.Event() for _ in range(6)]
    measured = []

    def size_of(number: int) -> int:
        measured.append(number)
        return 1

    results = run_tasks(lambda number: begun[number].set(), list(range(6)), Workers(2, "threads"), size_of)
    next(results)
    assert begun[2].wait(10)
    assert len(list(results)) == 5
    assert measured == list(range(6))


def test_slow_writing_does_not_pile_results_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers so fast that a task is done as soon as it is given."""

    class Pool(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
            future = Future[Any]()
            future.set_result(function(*args, **named))
            return future

    monkeypatch.setattr("multiseg.store.ingest.parallel._make_executor", lambda workers, num: Pool(num))
    begun = []
    results = run_tasks(begun.append, list(range(40)), Workers(2, "threads"))
    for num_written in range(1, 41):
        next(results)
        assert len(begun) <= num_written + 2 * 2


def test_tasks_wait_for_memory() -> None:
    lock, held, highest = threading.Lock(), [0], [0]

    def work(size: int) -> int:
        with lock:
            held[0] += size
            highest[0] = max(highest[0], held[0])
        time.sleep(0.02)
        with lock:
            held[0] -= size
        return size

    sizes = [40, 50, 30, 60, 20, 101, 70, 10]
    done = list(run_tasks(work, sizes, Workers(4, "threads", memory_bytes=100), bytes_of=lambda size: size))
    assert sorted(one.task for one in done) == sorted(sizes)
    (refused,) = [one for one in done if one.error]
    assert (refused.task, refused.error.code) == (101, "OUT_OF_MEMORY")
    assert 60 < highest[0] <= 100


def test_default_memory_is_within_the_machine() -> None:
    assert 0 < default_memory_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_workers_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="the number of workers is 0"):
        Workers(0)
    with pytest.raises(UsageError, match="'gpu' is neither"):
        Workers(2, "gpu")


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiseg.store.ingest.parallel.CLUSTER_TIMEOUT_S", 0.5)
    with pytest.raises(ResourceError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(run_tasks(square, [1], Workers(2, "tcp://127.0.0.1:9")))


@pytest.mark.parametrize("num_before", [0, 2])
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_scheduler_that_ends_is_named(monkeypatch: pytest.MonkeyPatch, num_before: int, is_closed: bool) -> None:
    """Its client cancels what is unfinished; once it is closed, it refuses what is submitted."""
    given = []

    class Cut(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
            given.append(args)
            if len(given) <= num_before:
                return super().submit(function, *args, **named)
            if is_closed:
                raise ClosedClientError("Client object has been closed")
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    monkeypatch.setattr(parallel, "_make_executor", lambda workers, num: Cut(num))
    monkeypatch.setattr(parallel, "_death_errors", lambda workers: ())
    with pytest.raises(ResourceError, match=r"scheduler at tcp://node1:8786 ended .* run the command again"):
        list(run_tasks(square, [1, 2, 3], Workers(2, "tcp://node1:8786")))


def test_a_cluster_without_workers_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(ThreadPoolExecutor):
        def submit(self, *task: Any) -> Future[Any]:
            return Future()

    monkeypatch.setattr(parallel, "FIRST_WORKER_S", 0.01)
    with pytest.raises(ResourceError, match=r"scheduler at tcp://node1:8786 answers, but no worker .* within 0\.01 s"):
        parallel._check_alive(Idle(), Workers(2, "tcp://node1:8786"))


def files_of(url: str) -> dict[str, bytes]:
    return {path.relative_to(url).as_posix(): path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}


def first_comes_last(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A preparation of three cases of each database at once, of which the first is done after the others."""
    changed, num_done = threading.Condition(), Counter[str]()

    def prepared(task: Any) -> Any:
        result = prepare(task)
        with changed:
            if task.case.case.endswith("1"):
                assert changed.wait_for(lambda: num_done[task.database] == 2, timeout=60)
            num_done[task.database] += 1
            changed.notify_all()
        return result

    return prepared


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "processes", "cluster"])
def test_the_store_is_the_same_whoever_prepares_it(
    kind: str, few_hospitals: Path, few_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, in all its files, but for those whose text or compression depends on the order of commits."""
    if kind == "threads":
        monkeypatch.setattr(ingestion, "_prepare_and_encode", first_comes_last(ingestion._prepare_and_encode))
    databases = find_manifest(few_hospitals / "manifest.toml")
    url = str(tmp_path / "brain.zarr")
    if kind == "cluster":
        with two_workers() as cluster:
            reports = ingest(databases, url, IngestOptions(SPACING_MM, workers=Workers(4, cluster.scheduler_address)))
    else:
        reports = ingest(databases, url, IngestOptions(SPACING_MM, workers=Workers(3, kind)))
    assert [report.written for report in reports] == [
        tuple(case.name for case in database.cases) for database in open_store(url).databases.values()
    ]
    assert files_of(url) == files_of(few_url)
