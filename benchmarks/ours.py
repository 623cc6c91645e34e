"""Our side of the comparisons: the stream, as a loader that may be timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.sides import Source
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.store.reader import open_store

FOR_EVER = 10**7
NUM_WINDOWS = 2048


@dataclass(frozen=True)
class Work:
    """What is to be delivered: patches of every sequence, half of them centred on a lesion.

    Attributes:
        is_turned: the sequences stand on the axis in the opposite order to the store's, and are dropped at random.
        as_float32: whoever takes the batch also makes float32 of it on the processor, as peers deliver it.
        more: further options of the stream, by name.
    """

    url: str
    edge: int
    workers: int = 2
    batch_size: int = 2
    as_float32: bool = False
    is_turned: bool = False
    more: tuple[tuple[str, Any], ...] = ()


def open_stream(work: Work) -> PatchStream:
    store = open_store(work.url)
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    if work.is_turned:
        axis = ModalityAxis(tuple(axis)[::-1])
    draw = DrawOptions((work.edge,) * 3, drop="uniform" if work.is_turned else "none")
    options = StreamOptions(draw, work.batch_size, workers=work.workers, **dict(work.more))
    return PatchStream(store, axis, LabelSpace(), options)


def touch(images: torch.Tensor, target: torch.Tensor) -> int:
    """Read a voxel of each; the number of patches."""
    assert images[-1, -1, -1, -1, -1].item() == images[-1, -1, -1, -1, -1].item()
    assert target.reshape(-1)[-1].item() < 256
    return len(images)


def check_same(one: Work, other: Work, num: int = 4) -> str:
    """Whether two streams deliver the same batches; run it in a process of its own."""
    for a, b in zip(open_stream(one).batches(0, num), open_stream(other).batches(0, num), strict=True):
        assert bool(a.images.any()), "an empty batch"
        assert torch.equal(a.images, b.images), "images differ"
        assert torch.equal(a.target, b.target), "labels differ"
    return f"same voxels in {num} batches of {tuple(a.images.shape)}"


def _batches(work: Work) -> Iterator[int]:
    for batch in open_stream(work).batches(0, FOR_EVER):
        yield touch(batch.images.float() if work.as_float32 else batch.images, batch.target)


def stream(work: Work, name: str = "", first: int = 0) -> Source:
    """The stream as it is."""
    made = ", float32" if work.as_float32 else ""
    return Source(name or f"stream, {work.workers} workers, {work.edge}^3{made}", partial(_batches, work), first=first)


def through_torch(work: Work) -> Source:
    """The same reader in the workers of torch's DataLoader."""
    return Source("torch DataLoader with our reader", partial(_batches_through_torch, work))


def _batches_through_torch(work: Work) -> Iterator[int]:
    inner = open_stream(replace(work, workers=0))
    for batch in DataLoader(inner, batch_size=None, num_workers=work.workers):
        yield touch(batch.images, batch.target)


def windows_of(work: Work, num: int = NUM_WINDOWS) -> list[tuple[str, str, int, tuple[int, int, int]]]:
    """Database, case, row and corner of the stream's first windows."""
    stream = open_stream(replace(work, workers=0))
    per_epoch = stream.options.batches_per_epoch * work.batch_size
    draws = [stream.plan.draw(*divmod(number, per_epoch)) for number in range(num)]
    return [(draw.case.database, draw.case.name, draw.case.row, draw.corner) for draw in draws]


def crops_in_memory(work: Work) -> Source:
    """Cropping decoded float16 cases in this process, a new tensor for each batch."""
    return Source("cropping decoded cases in one process", partial(_crops, work), ready=0)


def _crops(work: Work) -> Iterator[int]:
    store = open_store(work.url)
    decoded = {(case.database, case.row): store[case.database].whole(case) for case in store.cases}
    windows, edge, at = windows_of(work), work.edge, 0
    while True:
        images, target = None, torch.zeros(work.batch_size, edge, edge, edge, dtype=torch.uint8)
        for sample in range(work.batch_size):
            database, _, row, corner = windows[at % len(windows)]
            whole, codes = decoded[database, row]
            if images is None:
                images = torch.zeros(work.batch_size, len(whole), edge, edge, edge, dtype=torch.float16)
            part = tuple(slice(max(0, c), c + edge) for c in corner)
            put = tuple(slice(max(0, -c), max(0, -c) + n) for c, n in zip(corner, codes[0][part].shape, strict=True))
            images[sample, :, *put] = torch.from_numpy(whole)[:, *part]
            target[sample][put] = torch.from_numpy(codes)[0][part]
            at += 1
        assert images is not None
        yield touch(images, target)
