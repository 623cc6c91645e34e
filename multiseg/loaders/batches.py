"""Batches of aligned patches from several databases, streamed to torch."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import ForkProcess

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from multiseg.errors import DataError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.cache import CaseCache, with_places
from multiseg.loaders.draw import Draw, DrawOptions, DrawPlan, chosen
from multiseg.loaders.memory import SharedMemory, check_there_is
from multiseg.loaders.plan_sources import plan_sources
from multiseg.loaders.reader_processes import Processes
from multiseg.loaders.ring import MAX_LENT, Filled, Ring, Wanted
from multiseg.loaders.shards import Checksums
from multiseg.loaders.workers import Caller, Crew, Threads, Work
from multiseg.modalities import ModalityAxis
from multiseg.sides import mirrored
from multiseg.sizes import num_bytes
from multiseg.store.catalogue import select
from multiseg.store.hierarchy import is_remote
from multiseg.store.reader import Case, Store
from multiseg.store.structures import check_rest, schemas_of, unlisted_of

STARTS = ("auto", "fork", "forkserver", "spawn", "thread")
FAR_PATCHES = 8
"""Patches that a worker reads at a time from a remote store: most of the time it waits for the network."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of several databases on one modality axis and in one label space.

    Images and target may lie in memory that the stream uses again as soon as no tensor looks at it any more.

    Attributes:
        images: 0 where a sequence is absent or dropped.
        present: which channels hold a sequence.
        target: index in the label space; 255 where not to look.
        annotated: which labels of the space somebody looked for in the case.
        corner: the windows' first voxels in their cases; negative where a window begins before its case.
        draws: the epoch and index that each patch was drawn by, which also seed what is random afterwards.
        mirrored: what each index of the label space becomes in a mirror image, see `multiseg.sides.mirrored`; empty
            where sides play no part.
    """

    images: Float[Tensor, "batch modality i j k"]
    present: Bool[Tensor, "batch modality"]
    target: UInt8[Tensor, "batch i j k"]
    annotated: Bool[Tensor, "batch label"]
    database: tuple[str, ...]
    case: tuple[str, ...]
    corner: Int[Tensor, "batch 3"]
    draws: Int[Tensor, "batch 2"]
    mirrored: tuple[int, ...] = ()

    def __repr__(self) -> str:
        shape = " ".join(str(n) for n in self.images.shape)
        return f"<Batch: images [{shape}] of {', '.join(map('/'.join, zip(self.database, self.case, strict=True)))}>"

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, images in float32.

        Where memory is page-locked the copy goes on by itself, so use the current stream of the current card, which
        the stream waits for before it writes to the memory again.
        """
        return replace(
            self,
            images=self.images.to(device, non_blocking=True).float(),
            present=self.present.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
            annotated=self.annotated.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class StreamOptions:
    """How patches are drawn and delivered.

    Attributes:
        batch_size: patches a step, over all databases.
        workers: processes that read; 0 reads in this one, when a batch is asked for.
        start: how they are started: "fork", "forkserver", "spawn", or "thread" for threads instead; "auto" forks
            where the system forks well and the store is local, which is quickest.
        ahead: batches that are filled before they are asked for.
        cache: memory for decoded cases, shared by the workers, such as "4GiB"; "0" for none. It holds those cases
            that are drawn most often and does not change any patch.
        disk_cache: a folder for copies of a remote store's shards, which several runs may share; "" for none.
        disk_budget: the most that it may take.
        checksums: whether a worker compares a chunk with its checksum when it "first" reads it, "always" or "never".
        on_death: "restart" (a worker that died is replaced and its patches are read again) or "stop".
        batches_per_epoch: only names the draws (seed, epoch, index); nothing restarts at an epoch.
    """

    draw: DrawOptions = DrawOptions()
    batch_size: int = 4
    workers: int = 1
    start: str = "auto"
    ahead: int = 3
    cache: str = "0"
    disk_cache: str = ""
    disk_budget: str = "20GiB"
    checksums: Checksums = "first"
    on_death: str = "restart"
    batches_per_epoch: int = 250

    def check(self) -> None:
        """Raises UsageError where an option is out of its range."""
        if min(self.batch_size, self.batches_per_epoch, self.ahead) < 1 or self.workers < 0:
            raise UsageError(
                f"{self.batch_size} patches a batch, {self.batches_per_epoch} batches an epoch, {self.ahead} batches "
                f"ahead and {self.workers} workers make no stream: give at least 1, 1, 1 and 0."
            )
        known = {"start": STARTS, "checksums": ("first", "always", "never"), "on_death": ("restart", "stop")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} is {getattr(self, name)!r}, which is none of {', '.join(values)}.")


@dataclass(frozen=True)
class Share:
    """Which part of the stream a process trains on, where several train one model: its number among so many.

    Together they get the batches that one process with `num` times the batch size would get.
    """

    rank: int = 0
    num: int = 1


class PatchStream(IterableDataset[Batch]):
    """The training patches of a store as batches. Batch n is the same however often and wherever it is made.

    >>> stream = PatchStream(open_store("brain.zarr"), ModalityAxis(("FLAIR", "T1")), LabelSpace())
    >>> for batch in stream.batches(0, 100): ...

    Iterating over the stream itself begins at its position, which `state_dict` saves, and never ends. It is a torch
    IterableDataset too, for those who need a DataLoader (with batch_size=None, and slower, since it sends what the
    stream's own workers write in place).

    Raises:
        DataError: no case of the split is in the store, or none has a structure of the label space.
        UsageError: an option is out of its range, or cases have lesion structures that the space neither lists nor says
            what to do with (`LabelSpace.rest`).
    """

    def __init__(
        self,
        store: Store,
        axis: ModalityAxis,
        space: LabelSpace,
        options: StreamOptions | None = None,
        split: str = "train",
        databases: str | Sequence[str] = (),
        share: Share | None = None,
    ) -> None:
        self.options = options or StreamOptions()
        self.options.check()
        self.share = share or Share()
        if not 0 <= self.share.rank < self.share.num:
            raise UsageError(f"rank {self.share.rank} of {self.share.num} is none: give 0 to {self.share.num - 1}.")
        self.axis = axis
        self.space = space
        self._mirrored = mirrored(space)
        usable = [_narrowed(case, axis) for case in select(store, databases, split=split)]
        usable = [case for case in usable if case.modalities and self._is_annotated(store, case)]
        if not usable:
            raise DataError(
                f"{store.url} has no {split} case with the structures {', '.join(space.names)} "
                f"and one of the sequences {', '.join(axis)}. See: multiseg info {store.url}."
            )
        names = list(dict.fromkeys(case.database for case in usable))
        of_name = {name: [case for case in usable if case.database == name] for name in names}
        cases = {name: chosen(some, self.options.draw) for name, some in of_name.items()}
        drawn = [case for name, some in cases.items() if self.options.draw.weights.get(name, 1) > 0 for case in some]
        check_rest(space, unlisted_of(space, schemas_of(store, drawn)))
        num_together = self.options.batch_size * self.share.num
        if self.options.draw.databases == "each" and num_together % len(names):
            raise UsageError(
                f"{num_together} patches a step cannot be shared out over {len(names)} databases ({', '.join(names)}): "
                f'give a batch_size that {len(names)} divides, or databases = "drawn".'
            )
        self.plan = DrawPlan(store, cases, space, self.options.draw)
        self._plan_sources = plan_sources(self.plan, axis, self.options.checksums)
        budget = num_bytes(self.options.cache, "cache")
        self._sources, taken = with_places(self._plan_sources.sources, self.plan.chances, budget)
        self._cache = CaseCache(self._sources, taken)
        self._parts = store.parts(self.options.disk_cache, num_bytes(self.options.disk_budget, "disk_budget"))
        self.position = 0
        self._worker: tuple[int, int] | None = None
        self._reached: int | None = None

    def __repr__(self) -> str:
        cases = ", ".join(f"{len(some)} of {name}" for name, some in self.plan.cases.items())
        return f"<PatchStream: cases {cases}; {' '.join(self.axis)}; {', '.join(self.space.names)}>"

    def _is_annotated(self, store: Store, case: Case) -> bool:
        return bool(store[case.database].label_view(case, self.space).annotated.any())

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `position` on, without end. In a worker of a DataLoader, its share of them; the workers alone
        know then how far they are, and a StatefulDataLoader of torchdata saves it.

        Raises:
            UsageError: the store is remote and the DataLoader forked its workers; or the state that was loaded is that
                of a DataLoader with another number of workers.
        """
        worker = get_worker_info()
        own = None if worker is None else (int(worker.id), int(worker.num_workers))
        if self._worker not in (None, own):
            there, here = self._worker, "no worker" if own is None else f"worker {own[0]} of {own[1]}"
            raise UsageError(
                f"the state of worker {there[0]} of {there[1]} was loaded, but this is {here}: give the DataLoader "
                "num_workers as before; or load the position of a stream, which any number of workers resumes."
            )
        if own is None:
            for batch in self._batches(itertools.count(self.position), self.options.workers):
                self.position += 1
                yield batch
        else:
            if is_remote(self._sources.url) and isinstance(multiprocessing.current_process(), ForkProcess):
                raise UsageError(
                    f"{self._sources.url} cannot be read by forked workers, since connections do not survive a fork: "
                    'give the DataLoader multiprocessing_context="forkserver".'
                )
            first = self.position if self._worker else self.position + own[0]
            self._reached = first
            for batch in self._batches(itertools.count(first, own[1]), 0):
                self._reached += own[1]
                yield batch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` (exclusive) of the stream.

        Raises:
            StoreError: a file of the store is missing or damaged.
            ResourceError: there is no memory for the batches, or a worker died and may not be replaced.
        """
        yield from self._batches(range(start, stop), self.options.workers)

    def state_dict(self) -> dict[str, int]:
        """Where the stream is, to resume from there after `load_state_dict`.

        In a worker of a DataLoader it is the place of this worker: its next batch, and which of how many it is.
        """
        worker = get_worker_info()
        if worker is None:
            return {"position": self.position}
        reached = self.position + int(worker.id) if self._reached is None else self._reached
        return {"position": reached, "worker": int(worker.id), "num_workers": int(worker.num_workers)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from where another stream of the same store and options was."""
        self.position = int(state["position"])
        self._worker = (int(state["worker"]), int(state["num_workers"])) if "worker" in state else None
        self._reached = self.position if self._worker else None

    def _batches(self, numbers: Iterable[int], workers: int) -> Iterator[Batch]:
        drawn: deque[list[tuple[tuple[int, int], Draw]]] = deque()

        def wanted() -> Iterator[list[Wanted]]:
            for number in numbers:
                drawn.append([(key, self.plan.draw(*key)) for key in self._keys(number)])
                yield [self._plan_sources.wanted(draw) for _, draw in drawn[-1]]

        work = self._work(workers)
        ring = Ring(work, _crew(work, self.options, workers), self._cache)
        try:
            for filled in ring.filled(wanted()):
                yield self._batch(filled, drawn.popleft())
        finally:
            ring.close()

    def _work(self, workers: int) -> Work:
        """What the workers are given; they have something to do, and what they do next lies ready for them."""
        size = self.options.batch_size
        threads = FAR_PATCHES if is_remote(self._sources.url) else 1
        num_slots = max(self.options.ahead, math.ceil(2 * workers * threads / size)) + MAX_LENT
        num_bytes = num_slots * size * self._sources.patch_bytes
        check_there_is(num_bytes + (self._cache.memory.num_bytes if self._cache.memory else 0))
        memory = SharedMemory(num_bytes)
        return Work(self._sources, self._parts, threads, memory, self._cache.memory, num_slots, size)

    def _keys(self, number: int) -> list[tuple[int, int]]:
        """The (epoch, index) of the draws in batch `number`."""
        epoch, at = divmod(number, self.options.batches_per_epoch)
        size = self.options.batch_size
        first = (at * self.share.num + self.share.rank) * size
        return [(epoch, first + sample) for sample in range(size)]

    def _batch(self, filled: Filled, drawn: Sequence[tuple[tuple[int, int], Draw]]) -> Batch:
        draws = [draw for _, draw in drawn]
        return Batch(
            images=filled.images,
            present=self._plan_sources.present(draws),
            target=filled.target,
            annotated=self._plan_sources.annotated[[draw.number for draw in draws]],
            database=tuple(draw.case.database for draw in draws),
            case=tuple(draw.case.name for draw in draws),
            corner=torch.tensor([draw.corner for draw in draws], dtype=torch.int64),
            draws=torch.tensor([key for key, _ in drawn], dtype=torch.int64),
            mirrored=self._mirrored,
        )


def _narrowed(case: Case, axis: ModalityAxis) -> Case:
    """The case with those of its sequences that are on the axis: a drop must leave one of them.

    They are in the order of the axis, so that what is dropped does not depend on the order that a store has them in.
    """
    return replace(case, modalities=tuple(name for name in axis if name in case.modalities))


def _crew(work: Work, options: StreamOptions, workers: int) -> Crew:
    if not workers:
        return Caller(work)
    start, remote = options.start, is_remote(work.sources.url)
    if start == "thread":
        return Threads(work, workers)
    if start == "auto":
        start = "fork" if sys.platform == "linux" and not remote else "forkserver"
    if start == "fork" and remote:
        raise UsageError(
            f"{work.sources.url} cannot be read by forked workers, since its connections do not survive a fork: "
            'give start = "forkserver", "spawn" or "thread".'
        )
    return Processes(work, workers, start, options.on_death == "restart")
