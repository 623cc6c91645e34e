"""Batches of aligned patches from several databases, streamed to torch."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multiseg.errors import DataError, ResourceError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.align import place
from multiseg.loaders.draw import DrawOptions, DrawPlan
from multiseg.modalities import ModalityAxis
from multiseg.store.catalogue import select
from multiseg.store.hierarchy import is_remote
from multiseg.store.reader import Case, Store


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of several databases on one modality axis and in one label space.

    Attributes:
        images: 0 where a sequence is absent or dropped.
        present: which channels hold a sequence.
        target: index in the label space; 255 where not to look.
        annotated: which labels of the space somebody looked for in the case.
        corner: the windows' first voxels in their cases; negative where a window begins before its case.
        draws: the epoch and index that each patch was drawn by, which also seed what is random afterwards.
    """

    images: Float[Tensor, "batch modality i j k"]
    present: Bool[Tensor, "batch modality"]
    target: UInt8[Tensor, "batch i j k"]
    annotated: Bool[Tensor, "batch label"]
    database: tuple[str, ...]
    case: tuple[str, ...]
    corner: Int[Tensor, "batch 3"]
    draws: Int[Tensor, "batch 2"]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, images in float32."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True).float(),
            present=self.present.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
            annotated=self.annotated.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            present=self.present.pin_memory(),
            target=self.target.pin_memory(),
            annotated=self.annotated.pin_memory(),
        )


@dataclass(frozen=True)
class StreamOptions:
    """How patches are drawn and delivered.

    Attributes:
        batch_size: patches a step, over all databases.
        workers: processes that read; 0 reads in this one.
        batches_per_epoch: only names the draws (seed, epoch, index); nothing restarts at an epoch.
    """

    draw: DrawOptions = DrawOptions()
    batch_size: int = 4
    workers: int = 1
    batches_per_epoch: int = 250


class PatchStream:
    """The training patches of a store as batches. Batch n is the same however often and wherever it is made.

    >>> stream = PatchStream(open_store("brain.zarr"), ModalityAxis(("FLAIR", "T1")), LabelSpace())
    >>> for batch in stream.batches(0, 100): ...

    Raises:
        DataError: no case of the split is in the store, or none has a structure of the label space.
        UsageError: an option is out of its range.
    """

    def __init__(
        self,
        store: Store,
        axis: ModalityAxis,
        space: LabelSpace,
        options: StreamOptions | None = None,
        split: str = "train",
        databases: Sequence[str] = (),
    ) -> None:
        self.options = options or StreamOptions()
        if min(self.options.batch_size, self.options.batches_per_epoch) < 1 or self.options.workers < 0:
            raise UsageError(
                f"{self.options.batch_size} patches a batch, {self.options.batches_per_epoch} batches an epoch and "
                f"{self.options.workers} workers make no stream: give at least 1, 1 and 0."
            )
        self.axis = axis
        self.space = space
        usable = [self._narrowed(case) for case in select(store, databases, split=split)]
        usable = [case for case in usable if case.modalities and self._is_annotated(store, case)]
        if not usable:
            raise DataError(
                f"{store.url} has no {split} case with the structures {', '.join(space.names)} "
                f"and one of the sequences {', '.join(axis)}. See: multiseg info {store.url}."
            )
        names = list(dict.fromkeys(case.database for case in usable))
        cases = {name: [case for case in usable if case.database == name] for name in names}
        self.plan = DrawPlan(store, cases, space, self.options.draw)

    def _narrowed(self, case: Case) -> Case:
        """The case with those of its sequences that are on the axis: a drop must leave one of them."""
        return replace(case, modalities=tuple(name for name in case.modalities if name in self.axis))

    def _is_annotated(self, store: Store, case: Case) -> bool:
        return bool(store[case.database].label_view(case, self.space).annotated.any())

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` (exclusive) of the stream.

        Raises:
            ResourceError: a worker was killed, mostly for want of (shared) memory.
        """
        workers = self.options.workers
        loader = DataLoader(
            _Patches(self.plan, self.axis, self.space),
            batch_sampler=(self._keys(number) for number in range(start, stop)),
            num_workers=workers,
            # What reads over the network does not survive a fork: a forked worker would wait for ever.
            multiprocessing_context="spawn" if workers and is_remote(self.plan.store.url) else None,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: a loader must not draw from the one that dropout uses, or resuming would differ.
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_leave_signals_to_parent,
        )
        try:
            yield from loader
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise ResourceError(
                f"a process that reads patches died: {error} Mostly memory or shared memory (/dev/shm) ran out: "
                f"give fewer workers than {workers}, smaller patches or batches, or a container more --shm-size."
            ) from error

    def _keys(self, number: int) -> list[tuple[int, int]]:
        """The (epoch, index) of the draws in batch `number`."""
        size = self.options.batch_size
        epoch, at = divmod(number, self.options.batches_per_epoch)
        return [(epoch, at * size + sample) for sample in range(size)]


@dataclass(frozen=True, eq=False)
class _Sample:
    images: Float[np.ndarray, "modality i j k"]
    present: Bool[np.ndarray, " modality"]
    target: UInt8[np.ndarray, "i j k"]
    annotated: Bool[np.ndarray, " label"]
    database: str
    case: str
    corner: tuple[int, int, int]
    key: tuple[int, int]


class _Patches(Dataset[_Sample]):
    """Patches by (epoch, index)."""

    def __init__(self, plan: DrawPlan, axis: ModalityAxis, space: LabelSpace) -> None:
        self.plan = plan
        self.axis = axis
        self.space = space

    def __getitem__(self, key: tuple[int, int]) -> _Sample:
        draw = self.plan.draw(*key)
        case = draw.case
        database = self.plan.store[case.database]
        patch = self.plan.options.patch
        images, present = place(database.image(case, draw.corner, patch), database.modalities, draw.kept, self.axis)
        view = database.label_view(case, self.space)
        target = view.target(database.codes(case, draw.corner, patch))
        return _Sample(images, present, target, view.annotated, case.database, case.name, draw.corner, key)


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal, SIGTERM often every process of a job; only the training
    may decide what they mean. A worker ends when its parent says so or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _collate(samples: Sequence[_Sample]) -> Batch:
    return Batch(
        images=torch.from_numpy(np.stack([sample.images for sample in samples])),
        present=torch.from_numpy(np.stack([sample.present for sample in samples])),
        target=torch.from_numpy(np.stack([sample.target for sample in samples])),
        annotated=torch.from_numpy(np.stack([sample.annotated for sample in samples])),
        database=tuple(sample.database for sample in samples),
        case=tuple(sample.case for sample in samples),
        corner=torch.tensor([sample.corner for sample in samples], dtype=torch.int64),
        draws=torch.tensor([sample.key for sample in samples], dtype=torch.int64),
    )
