"""Who reads the patches: processes, threads, or the caller itself; all take tasks and say which are done."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from multiseg.loaders.memory import SharedMemory
from multiseg.loaders.patches import PatchReader, PatchTask, Sources
from multiseg.store.byte_ranges import Parts


@dataclass(frozen=True, eq=False)
class Work:
    """What a worker is given once: what to read, where to put it, how many patches at a time.

    `num_slots` batches of `batch_size` patches lie in `memory`, all images first; decoded cases in `cache`.
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
    """Does tasks; of one process, its threads may share it."""

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
    """Those who read."""

    def give(self, task: PatchTask) -> None:
        """Have a task done, now or later."""

    def done(self) -> Sequence[int]:
        """Serials of tasks done since the last call; waits for at least one.

        Raises:
            StoreError, ResourceError: a task cannot be done, or a worker is dead.
        """

    def close(self) -> None:
        """End, with tasks undone."""


class Caller:
    """No worker: what is asked for is read when it is waited for."""

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
    """Threads of this process. They share its interpreter, so they suit machines that can start no processes."""

    def __init__(self, work: Work, num: int) -> None:
        self._doer = Doer(work)
        self._pool = ThreadPoolExecutor(num * work.threads, "multiseg-reader")
        self._done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def give(self, task: PatchTask) -> None:
        self._pool.submit(self._do, task)

    def _do(self, task: PatchTask) -> None:
        try:
            self._doer.do(task)
            self._done.put(task.serial)
        except BaseException as error:  # noqa: BLE001 (goes to whoever waits, as it would without threads)
            self._done.put(error)

    def done(self) -> Sequence[int]:
        found = [self._done.get()]
        while not self._done.empty():
            found.append(self._done.get())
        serials = []
        for one in found:
            if isinstance(one, BaseException):
                raise one
            serials.append(one)
        return serials

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
