"""The ring: memory for a few batches, which workers fill in advance, and which is lent and reused."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from torch import Tensor

from multiseg.loaders.cache import CaseCache
from multiseg.loaders.memory import SharedMemory
from multiseg.loaders.patches import PatchTask
from multiseg.loaders.workers import Crew, Work
from multiseg.types import Index3

log = logging.getLogger(__name__)

MAX_LENT = 2
"""Batches that a training loop holds at once: the last one, and the next, which it just got."""


@dataclass(frozen=True)
class Wanted:
    """A patch to read: the number of its case, its window's corner, and a bit for each channel that is kept."""

    case: int
    corner: Index3
    kept: int


@dataclass(frozen=True, eq=False)
class Filled:
    """A batch in the ring's memory, which is not reused before all tensors on it are gone."""

    images: Float16[Tensor, "batch modality i j k"]
    target: UInt8[Tensor, "batch i j k"]


class Ring:
    """Fills batches in advance, in order.

    A batch is lent, not copied, and returns when the last tensor on its memory is gone. A caller that keeps more than
    MAX_LENT batches gets copies, so that no batch in use is ever overwritten.

    Args:
        work: has MAX_LENT slots more than the number of batches to fill in advance.
    """

    def __init__(self, work: Work, crew: Crew, cache: CaseCache) -> None:
        self._crew = crew
        self._cache = cache
        self._images, self._targets = work.images(), work.targets()
        self._ahead = work.num_slots - MAX_LENT
        self._serial = 0
        self._slots: dict[int, int] = {}
        self._undone = [0] * work.num_slots
        self._free = deque(range(work.num_slots))
        self._returned: deque[int] = deque()
        self._lent: dict[int, int] = {}
        self._pinned = _PinnedMemory(work.memory)

    def filled(self, batches: Iterator[Sequence[Wanted]]) -> Iterator[Filled]:
        """The batches in order, each with as many patches as a slot.

        Raises:
            StoreError: a case cannot be read.
            ResourceError: a worker died.
        """
        waiting: deque[int] = deque()
        while True:
            self._take_back()
            while len(waiting) < self._ahead and (wanted := next(batches, None)) is not None:
                waiting.append(self._assign(wanted))
            if not waiting:
                return
            slot = waiting.popleft()
            while self._undone[slot]:
                self._collect()
            yield self._lend(slot)

    def close(self) -> None:
        """Stop the workers. Lent batches stay valid."""
        self._crew.close()
        self._pinned.close()
        for slot in self._slots.values():
            if slot < 0:
                self._cache.is_given_up(-1 - slot)

    def _assign(self, wanted: Sequence[Wanted]) -> int:
        slot = self._free.popleft() if self._free else self._pinned.cooled()
        self._undone[slot] = len(wanted)
        for position, patch in enumerate(wanted):
            if self._cache.is_due(patch.case):
                self._give(PatchTask(0, -1, 0, patch.case, (0, 0, 0), 0))
            is_cached = self._cache.holds(patch.case)
            self._give(PatchTask(0, slot, position, patch.case, patch.corner, patch.kept, is_cached))
        return slot

    def _give(self, task: PatchTask) -> None:
        self._serial += 1
        self._slots[self._serial] = task.slot if task.slot >= 0 else -1 - task.case
        self._crew.give(task._replace(serial=self._serial))

    def _collect(self) -> None:
        for serial in self._crew.done():
            slot = self._slots.pop(serial)
            if slot >= 0:
                self._undone[slot] -= 1
            else:
                self._cache.is_decoded(-1 - slot)

    def _lend(self, slot: int) -> Filled:
        images, target = self._images[slot], self._targets[slot]
        if len(self._lent) >= MAX_LENT:
            self._free.append(slot)
            return Filled(torch.from_numpy(images.copy()), torch.from_numpy(target.copy()))
        self._lent[slot] = 2
        for array in (images, target):  # a tensor from an array keeps that array alive
            weakref.finalize(array, self._returned.append, slot).atexit = False
        return Filled(torch.from_numpy(images), torch.from_numpy(target))

    def _take_back(self) -> None:
        while self._returned:
            slot = self._returned.popleft()
            self._lent[slot] -= 1
            if not self._lent[slot]:
                del self._lent[slot]
                self._pinned.cool(slot)
        self._free.extend(self._pinned.cool_slots())


class _PinnedMemory:
    """The ring's memory, page-locked if this process uses CUDA, so that copies to the GPU are asynchronous.

    A returned slot may still be copied from: it is free when the current CUDA stream of the current GPU has done all
    its work so far.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._cooling: deque[tuple[torch.cuda.Event | None, int]] = deque()
        self._address: int | None = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._pin(memory)

    def _pin(self, memory: SharedMemory) -> None:
        address = np.frombuffer(memory.map, np.uint8).ctypes.data
        failure = int(torch.cuda.cudart().cudaHostRegister(address, memory.num_bytes, 0))  # type: ignore[no-untyped-call]
        if failure:
            log.warning("cannot page-lock the memory for patches (CUDA error %d): copies will be slower", failure)
            with suppress(RuntimeError):  # clears the error, which the next CUDA call would raise
                torch.zeros(1, device="cuda")
        else:
            self._address = address

    def cool(self, slot: int) -> None:
        event = None
        if self._address is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._cooling.append((event, slot))

    def cool_slots(self) -> list[int]:
        slots = []
        while self._cooling and (self._cooling[0][0] is None or self._cooling[0][0].query()):  # type: ignore[no-untyped-call]
            slots.append(self._cooling.popleft()[1])
        return slots

    def cooled(self) -> int:
        """Wait for the next slot."""
        event, slot = self._cooling.popleft()
        if event is not None:
            event.synchronize()
        return slot

    def close(self) -> None:
        if self._address is not None:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self._address)  # type: ignore[no-untyped-call]
            self._address = None
