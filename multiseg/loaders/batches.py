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
"""Patches that a worker reads at once from a remote store, since it mostly waits for the network."""


@dataclass(frozen=True, eq=False)
class Donor:
    """For each patch of a batch, the lesion that may be pasted into it.

    Attributes:
        images: with the lesion, on the same axis and grid.
        lesion: the voxels to paste.
    """

    images: Float[Tensor, "batch modality i j k"]
    lesion: Bool[Tensor, "batch i j k"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of several databases on one modality axis and in one label space.

    Images and target may share memory that the stream reuses when no tensor refers to it any more.

    Attributes:
        images: 0 where a sequence is absent or dropped.
        present: which channels hold a sequence.
        target: index in the label space; 255 is ignored.
        annotated: the labels of the space that the case is annotated for.
        corner: the windows' first voxels in their cases; negative if a window starts before its case.
        draws: the epoch and index of each patch, which also seed its augmentation.
        mirrored: what each index of the label space becomes in a mirror image, see `multiseg.sides.mirrored`; empty
            if no label has a side.
        tissues: the labels of the space, counted from 0, that are tissues; all others are lesions.
        sequences: the names of the channels; empty if nobody told.
        donor: lesions to paste into the patches, if there are any.
        soft: a probability of each of `tissues` as target, also under lesions; None if `target` says all.
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
    tissues: tuple[int, ...] = ()
    sequences: tuple[str, ...] = ()
    donor: Donor | None = None
    soft: Float[Tensor, "batch tissue i j k"] | None = None

    def __repr__(self) -> str:
        shape = " ".join(str(n) for n in self.images.shape)
        return f"<Batch: images [{shape}] of {', '.join(map('/'.join, zip(self.database, self.case, strict=True)))}>"

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, images in float32.

        The copy from page-locked memory is asynchronous, so use the current CUDA stream of the current GPU: the patch
        stream waits for it before it reuses the memory.
        """
        return replace(
            self,
            images=self.images.to(device, non_blocking=True).float(),
            present=self.present.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
            annotated=self.annotated.to(device, non_blocking=True),
            donor=None
            if self.donor is None
            else Donor(
                self.donor.images.to(device, non_blocking=True).float(),
                self.donor.lesion.to(device, non_blocking=True),
            ),
            soft=None if self.soft is None else self.soft.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class StreamOptions:
    """How patches are drawn and delivered.

    Attributes:
        batch_size: patches per step, over all databases.
        workers: number of reader processes; 0 reads in this process, when a batch is requested.
        start: how they are started: "fork", "forkserver", "spawn", or "thread" for threads instead; "auto" forks
            on Linux if the store is local, which is fastest.
        ahead: batches that are filled in advance.
        cache: memory for decoded cases, shared by the workers, such as "4GiB"; "0" for none. It holds the cases
            that are drawn most often and does not change any patch.
        disk_cache: a folder for copies of a remote store's shards, which several runs may share; "" for none.
        disk_budget: its largest size.
        checksums: whether a worker checks a chunk's checksum when it "first" reads it, "always" or "never".
        on_death: "restart" (a worker that died is replaced and its patches are read again) or "stop".
        batches_per_epoch: only numbers the draws (seed, epoch, index); nothing restarts at an epoch.
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
        """Raises UsageError if an option is out of its range."""
        for name, lowest in (("batch_size", 1), ("batches_per_epoch", 1), ("ahead", 1), ("workers", 0)):
            if getattr(self, name) < lowest:
                raise UsageError(f"stream.{name} is {getattr(self, name)}: give at least {lowest}.")
        choices = {"start": STARTS, "checksums": ("first", "always", "never"), "on_death": ("restart", "stop")}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise UsageError(f"stream.{name} is {getattr(self, name)!r}: give one of {', '.join(values)}.")


@dataclass(frozen=True)
class Share:
    """The part of the stream for process `rank` of `num` that train one model.

    Together they get the batches that one process with `num` times the batch size would get.
    """

    rank: int = 0
    num: int = 1


class PatchStream(IterableDataset[Batch]):
    """The training patches of a store as batches. Batch n is always the same, on every machine.

    >>> stream = PatchStream(open_store("brain.zarr"), ModalityAxis(("FLAIR", "T1")), LabelSpace())
    >>> for batch in stream.batches(0, 100): ...

    Iterating over the stream itself starts at its position, which `state_dict` saves, and never ends. It is also a
    torch IterableDataset for a DataLoader (with batch_size=None; slower, since a DataLoader copies batches between
    processes).

    Args:
        sequences: of the axis, those that are shown; empty for all.
        needs: sequences of which a case must have one to be drawn; empty for any case.

    Raises:
        DataError: no case of the split is in the store, or none has a structure of the label space.
        UsageError: an option is out of its range, or cases have lesion structures that the space neither lists nor
            covers by `LabelSpace.rest`.
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
        sequences: Sequence[str] = (),
        needs: Sequence[str] = (),
    ) -> None:
        self.options = options or StreamOptions()
        self.options.check()
        self.share = share or Share()
        if not 0 <= self.share.rank < self.share.num:
            raise UsageError(f"the rank is {self.share.rank} of {self.share.num}: give 0 to {self.share.num - 1}.")
        self.axis = axis
        self.space = space
        self._mirrored = mirrored(space)
        self.sequences = tuple(name for name in axis if not sequences or name in sequences)
        usable = [_narrowed(case, self.sequences) for case in select(store, databases, split=split)]
        usable = [case for case in usable if case.modalities and self._is_annotated(store, case)]
        if not usable:
            raise DataError(
                f"{store.url} has no {split} case with the structures {', '.join(space.names)} "
                f"and one of the sequences {', '.join(self.sequences)}. See: multiseg info {store.url}."
            )
        names = list(dict.fromkeys(case.database for case in usable))
        draw = self.options.draw
        cases = {name: chosen([case for case in usable if case.database == name], draw) for name in names}
        if needs:
            cases = {
                name: [case for case in listed if set(needs) & set(case.modalities)] for name, listed in cases.items()
            }
            names = [name for name in names if cases[name]]
            cases = {name: cases[name] for name in names}
        drawn = [case for name in names if draw.weights.get(name, 1) > 0 for case in cases[name]]
        check_rest(space, unlisted_of(space, store, schemas_of(store, drawn)))
        if draw.databases == "each":
            _check_divides(self.options.batch_size * self.share.num, names)
        self.plan = DrawPlan(store, cases, space, self.options.draw)
        self._plan_sources = plan_sources(self.plan, axis, self.options.checksums)
        budget = num_bytes(self.options.cache, "cache")
        self._sources, cache_bytes = with_places(self._plan_sources.sources, self.plan.chances, budget)
        self._cache = CaseCache(self._sources, cache_bytes)
        self._parts = store.parts(self.options.disk_cache, num_bytes(self.options.disk_budget, "disk_budget"))
        self.position = 0
        self._worker: tuple[int, int] | None = None
        self._reached: int | None = None

    def __repr__(self) -> str:
        cases = ", ".join(f"{len(cases)} of {name}" for name, cases in self.plan.cases.items())
        return f"<PatchStream: cases {cases}; {' '.join(self.axis)}; {', '.join(self.space.names)}>"

    def _is_annotated(self, store: Store, case: Case) -> bool:
        return bool(store[case.database].label_view(case, self.space).annotated.any())

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `position` on, without end. A DataLoader's worker yields its share of them and keeps its own
        position, which a StatefulDataLoader of torchdata saves.

        Raises:
            UsageError: the store is remote and the DataLoader forked its workers; or the state that was loaded is that
                of a DataLoader with another number of workers.
        """
        info = get_worker_info()
        worker = None if info is None else (int(info.id), int(info.num_workers))
        if self._worker not in (None, worker):
            saved, this = self._worker, "no worker" if worker is None else f"worker {worker[0]} of {worker[1]}"
            raise UsageError(
                f"the state of worker {saved[0]} of {saved[1]} was loaded, but this is {this}: give the DataLoader "
                "num_workers as before, or load the position of a stream, which any number of workers can resume."
            )
        if worker is None:
            for batch in self._batches(itertools.count(self.position), self.options.workers):
                self.position += 1
                yield batch
        else:
            if is_remote(self._sources.url) and isinstance(multiprocessing.current_process(), ForkProcess):
                raise UsageError(
                    f"forked workers cannot read {self._sources.url}, since connections do not survive a fork: "
                    'give the DataLoader multiprocessing_context="forkserver".'
                )
            first = self.position if self._worker else self.position + worker[0]
            self._reached = first
            for batch in self._batches(itertools.count(first, worker[1]), 0):
                self._reached += worker[1]
                yield batch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` (exclusive) of the stream.

        Raises:
            StoreError: a file of the store is missing or damaged.
            ResourceError: there is not enough memory, or a worker died and `on_death` is "stop".
        """
        yield from self._batches(range(start, stop), self.options.workers)

    def state_dict(self) -> dict[str, int]:
        """The position of the stream, for `load_state_dict`.

        In a worker of a DataLoader: its next batch, its number and the number of workers.
        """
        worker = get_worker_info()
        if worker is None:
            return {"position": self.position}
        reached = self.position + int(worker.id) if self._reached is None else self._reached
        return {"position": reached, "worker": int(worker.id), "num_workers": int(worker.num_workers)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from the position of a stream with the same store and options."""
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
        """What the workers get: enough slots that every worker has a patch to read and the next one."""
        size = self.options.batch_size
        threads = FAR_PATCHES if is_remote(self._sources.url) else 1
        num_slots = max(self.options.ahead, math.ceil(2 * workers * threads / size)) + MAX_LENT
        num_bytes = num_slots * size * self._sources.patch_bytes
        check_there_is(num_bytes + (self._cache.memory.num_bytes if self._cache.memory else 0))
        memory = SharedMemory(num_bytes)
        return Work(self._sources, self._parts, threads, memory, self._cache.memory, num_slots, size)

    def _keys(self, number: int) -> list[tuple[int, int]]:
        """The (epoch, index) of the draws in batch `number`."""
        epoch, number_in_epoch = divmod(number, self.options.batches_per_epoch)
        size = self.options.batch_size
        first = (number_in_epoch * self.share.num + self.share.rank) * size
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
            tissues=self.space.tissues,
            sequences=tuple(self.axis),
        )


def _check_divides(num_patches: int, names: Sequence[str]) -> None:
    """Raises UsageError if the patches of a step cannot be split equally over the databases."""
    if num_patches % len(names):
        raise UsageError(
            f"{num_patches} patches per step cannot be split equally over {len(names)} databases "
            f'({", ".join(names)}): give a multiple of {len(names)} as batch_size, or databases = "drawn".'
        )


def _narrowed(case: Case, sequences: Sequence[str]) -> Case:
    """The case with only these sequences, in their order, so that modality drop does not depend on the order in the
    store."""
    return replace(case, modalities=tuple(name for name in sequences if name in case.modalities))


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
            f"forked workers cannot read {work.sources.url}, since connections do not survive a fork: "
            'give start = "forkserver", "spawn" or "thread".'
        )
    return Processes(work, workers, start, options.on_death == "restart")
