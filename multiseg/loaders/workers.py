"""Workers that read patches: threads, the caller itself, and the interface that processes share with them."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from multiseg.loaders.memory import SharedMemory
from multiseg.loaders.patches import PatchReader, PatchTask, Sources
from multiseg.store.byte_ranges import Parts


@dataclass(frozen=True, eq=False)
class Work:
    """What a worker gets once: what to read, where to write it, and how many patches at once.

    `memory` holds `num_slots` batches of `batch_size` patches, all images first; `cache` holds decoded cases.
    """

    sources: Sources
    parts: Parts
    threads: int
    memory: SharedMemory
    cache: SharedMemory | None
    num_slots: int
    batch_size: int

    def images(self) -> np.ndarray:
        """All slots' images [slot position modality i j k], float16."""
        return np.ndarray(self._shape(self.sources.num_places), np.float16, self.memory.map)

    def targets(self) -> np.ndarray:
        """All slots' targets [slot position i j k], uint8."""
        start = 2 * int(np.prod(self._shape(self.sources.num_places)))
        return np.ndarray(self._shape(), np.uint8, self.memory.map, start)

    def _shape(self, *channels: int) -> tuple[int, ...]:
        return (self.num_slots, self.batch_size, *channels, *self.sources.patch)


class Doer:
    """Does tasks; the threads of a process may share it."""

    def __init__(self, work: Work) -> None:
        self._images, self._targets = work.images(), work.targets()
        cache = None if work.cache is None else work.cache.view()
        self._cases = work.sources.cases
        self._reader = PatchReader(work.sources, work.parts, cache)

    def do(self, task: PatchTask) -> None:
        if task.slot < 0:
            self._reader.decode(self._cases[task.case])
        else:
            place = task.slot, task.position
            self._reader.fill(task, self._images[place], self._targets[place])


@runtime_checkable
class Crew(Protocol):
    """Workers that take tasks and report which are done."""

    def give(self, task: PatchTask) -> None:
        """Have a task done, now or later."""

    def done(self) -> Sequence[int]:
        """Serials of tasks done since the last call; waits for at least one.

        Raises:
            StoreError, ResourceError: a task failed, or a worker died.
        """

    def close(self) -> None:
        """Stop, without the open tasks."""


class Caller:
    """No worker: a task is done when its result is waited for."""

    def __init__(self, work: Work) -> None:
        self._doer = Doer(work)
        self._tasks: deque[PatchTask] = deque()

    def give(self, task: PatchTask) -> None:
        self._tasks.append(task)

    def done(self) -> Sequence[int]:
        task = self._tasks.popleft()
        self._doer.do(task)
        return [task.serial]

    def close(self) -> None:
        self._tasks.clear()


class Threads:
    """Threads of this process, for machines that cannot start processes, since threads share one interpreter."""

    def __init__(self, work: Work, num: int) -> None:
        self._doer = Doer(work)
        self._pool = ThreadPoolExecutor(num * work.threads, "multiseg-reader")
        self._done: queue.SimpleQueue[Future[int]] = queue.SimpleQueue()

    def give(self, task: PatchTask) -> None:
        self._pool.submit(self._do, task).add_done_callback(self._done.put)

    def _do(self, task: PatchTask) -> int:
        self._doer.do(task)
        return task.serial

    def done(self) -> Sequence[int]:
        futures = [self._done.get()]
        while not self._done.empty():
            futures.append(self._done.get())
        return [future.result() for future in futures]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
