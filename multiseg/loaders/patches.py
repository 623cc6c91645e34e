"""Read patches into the slots of a batch: what a reader process needs and does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Shaped, UInt8

from multiseg.errors import MultisegError
from multiseg.loaders.shards import ChannelRun, Checksums, ShardReader, runs_of
from multiseg.store.array_layout import ArrayLayout
from multiseg.store.byte_ranges import Parts
from multiseg.types import Index3


class PatchTask(NamedTuple):
    """One patch to read: its case, corner and channels, and its slot and position in the batches.

    `kept` has a bit for each channel of the database; `is_cached` says that the case is decoded in the cache.
    A task with `slot` -1 decodes the whole case into the cache.
    """

    serial: int
    slot: int
    position: int
    case: int
    corner: Index3
    kept: int
    is_cached: bool = False


class Overlap(NamedTuple):
    """The part of a window inside its case: first voxel in the case, size, and first voxel in the window."""

    corner: Index3
    size: Index3
    at: Index3


@dataclass(frozen=True)
class DatabaseSource:
    """The arrays of a database, and the place on the axis of each of its channels (-1: not on it)."""

    image: ArrayLayout
    label: ArrayLayout
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TargetTable:
    """The map from codes of one annotation to a target; `is_plain` if it changes no code that occurs."""

    annotation: int
    table: UInt8[np.ndarray, "256"]
    is_plain: bool


@dataclass(frozen=True)
class CaseSource:
    """Where a case is stored.

    Attributes:
        tables: the number of its target tables.
        shards: names its files.
        cached_at: its first byte in the cache, -1 if it has no place there.
    """

    name: str
    database: int
    row: int
    extent: Index3
    tables: int
    shards: str
    cached_at: int = -1


@dataclass(frozen=True)
class Sources:
    """All that is needed to read patches, in plain values that can be sent to other processes."""

    url: str
    databases: Sequence[DatabaseSource]
    cases: Sequence[CaseSource]
    tables: Sequence[Sequence[TargetTable]]
    patch: Index3
    num_places: int
    checksums: Checksums = "first"

    @property
    def patch_bytes(self) -> int:
        """Bytes of a patch: float16 images of all channels, and its target."""
        return int(np.prod(self.patch)) * (2 * self.num_places + 1)

    def cached_bytes(self, case: CaseSource) -> int:
        """Bytes of a decoded case: float16 images of its database's channels, and its target."""
        return int(np.prod(case.extent)) * (2 * len(self.databases[case.database].places) + 1)


class PatchReader:
    """Reads patches into given arrays. Threads may share one; every process makes its own.

    Args:
        cache: memory that holds decoded cases at `CaseSource.cached_at`.
    """

    def __init__(self, sources: Sources, parts: Parts, cache: memoryview | None = None) -> None:
        self.sources = sources
        self._cache = cache
        shards: list[dict[int, str]] = [{} for _ in sources.databases]
        for case in sources.cases:
            shards[case.database][case.row] = case.shards
        pairs = list(zip(sources.databases, shards, strict=True))
        self._images = [ShardReader(parts, source.image, sources.checksums, by_row) for source, by_row in pairs]
        self._labels = [ShardReader(parts, source.label, sources.checksums, by_row) for source, by_row in pairs]
        self._runs: dict[tuple[int, int], tuple[tuple[ChannelRun, ...], tuple[int, ...]]] = {}

    def fill(
        self, task: PatchTask, images: Float16[np.ndarray, "modality i j k"], target: UInt8[np.ndarray, "i j k"]
    ) -> None:
        """Write a patch into `images` and `target`, every voxel of them.

        Outside the case, which was cropped to its brain and labels, images and target are 0.

        Raises:
            StoreError: a file of the case is missing or damaged.
            ResourceError: it cannot be read.
        """
        case = self.sources.cases[task.case]
        overlap = _inside(task.corner, self.sources.patch, case.extent)
        runs, absent = self._placed(case.database, task.kept)
        _clear_around(images, overlap)
        _clear_around(target[None], overlap)
        if min(overlap.size) == 0:
            return
        for place in absent:
            images[place] = 0
        if task.is_cached:
            self._copy_cached(case, runs, overlap, images, target)
            return
        with _naming_case(case.name):
            self._images[case.database].read(case.row, runs, overlap.corner, overlap.size, images, overlap.at)
            self._read_target(case, overlap, target)

    def decode(self, case: CaseSource) -> None:
        """Decode a whole case into the cache.

        Raises: as `fill`.
        """
        images, target = self._cached(case)
        channels = self.sources.databases[case.database].image.chunk[0]
        runs = runs_of([(at, at) for at in range(len(images))], channels)
        with _naming_case(case.name):
            self._images[case.database].read(case.row, runs, (0, 0, 0), case.extent, images)
            # Copied when it is complete: another process may already be reading patches from the cache.
            complete = np.empty(case.extent, dtype=np.uint8)
            self._read_target(case, Overlap((0, 0, 0), case.extent, (0, 0, 0)), complete)
            target[...] = complete

    def _placed(self, database: int, kept: int) -> tuple[tuple[ChannelRun, ...], tuple[int, ...]]:
        """The channels to read with their places, and the places that stay empty."""
        runs = self._runs.get((database, kept))
        if runs is None:
            source = self.sources.databases[database]
            pairs = [(n, place) for n, place in enumerate(source.places) if place >= 0 and kept >> n & 1]
            filled = {place for _, place in pairs}
            absent = tuple(place for place in range(self.sources.num_places) if place not in filled)
            runs = self._runs[database, kept] = runs_of(pairs, source.image.chunk[0]), absent
        return runs

    def _read_target(self, case: CaseSource, overlap: Overlap, target: UInt8[np.ndarray, "i j k"]) -> None:
        reader, (corner, size, at) = self._labels[case.database], overlap
        first, *others = self.sources.tables[case.tables]
        reader.read(case.row, (ChannelRun(first.annotation, 0),), corner, size, target[None], at)
        if not first.is_plain:  # also around the case, where the table maps 0 to 0
            map_codes(target, first.table)
        for other in others:
            codes = np.empty((1, *size), dtype=np.uint8)
            reader.read(case.row, (ChannelRun(other.annotation, 0),), corner, size, codes)
            map_codes(codes, other.table)
            np.copyto(target[_box(at, size)], codes[0], where=codes[0] != 0)

    def _cached(self, case: CaseSource) -> tuple[Float16[np.ndarray, "channel i j k"], UInt8[np.ndarray, "i j k"]]:
        assert self._cache is not None
        shape = (len(self.sources.databases[case.database].places), *case.extent)
        images = np.ndarray(shape, np.float16, self._cache, case.cached_at)
        return images, np.ndarray(case.extent, np.uint8, self._cache, case.cached_at + images.nbytes)

    def _copy_cached(
        self,
        case: CaseSource,
        runs: Sequence[ChannelRun],
        overlap: Overlap,
        images: Float16[np.ndarray, "modality i j k"],
        target: UInt8[np.ndarray, "i j k"],
    ) -> None:
        cached, codes = self._cached(case)
        source, destination = _box(overlap.corner, overlap.size), _box(overlap.at, overlap.size)
        for run in runs:
            for n in range(run.num):
                channel, place = run.source + n * run.source_step, run.target + n * run.target_step
                _copy_rows(cached[channel][source], images[place][destination])
        _copy_rows(codes[source], target[destination])


@contextmanager
def _naming_case(case: str) -> Iterator[None]:
    """Prefix the messages of our own errors with the name of the case; their type, code and file stay."""
    try:
        yield
    except MultisegError as error:
        error.args = (f"{case}: {error}", *error.args[1:])
        raise


def map_codes(codes: UInt8[np.ndarray, "*axes"], table: UInt8[np.ndarray, "256"]) -> None:
    """Replace every code by its value in a table. The array must be contiguous; the table must map 0 to 0.

    If few voxels are labelled, only groups of eight voxels with a label are looked up.
    """
    flat = codes.reshape(-1)
    if flat.size % 8 == 0:
        labelled = np.flatnonzero(flat.view(np.uint64))
        if len(labelled) <= flat.size // 64:
            groups = flat.reshape(-1, 8)
            groups[labelled] = table[groups[labelled]]
            return
    flat[:] = np.frombuffer(flat.tobytes().translate(table.tobytes()), dtype=np.uint8)


def _copy_rows(source: Shaped[np.ndarray, "*axes k"], target: Shaped[np.ndarray, "*axes k"]) -> None:
    """Copy rows along k as single items: numpy copies few large items faster than many small ones."""
    row = np.dtype(f"V{source.shape[-1] * source.itemsize}")
    target.view(row)[...] = source.view(row)


def _box(first: Index3, size: Index3) -> tuple[slice, ...]:
    return tuple(slice(start, start + num) for start, num in zip(first, size, strict=True))


def _clear_around(window: Shaped[np.ndarray, "place i j k"], overlap: Overlap) -> None:
    """Set everything around the overlap to 0, side by side."""
    remaining = [slice(None)] * 4
    for axis, box in enumerate(_box(overlap.at, overlap.size), start=1):
        for side in (slice(0, box.start), slice(box.stop, None)):
            window[(*remaining[:axis], side, *remaining[axis + 1 :])] = 0
        remaining[axis] = box


def _inside(corner: Index3, patch: Index3, extent: Index3) -> Overlap:
    low = [max(0, c) for c in corner]
    size = [max(0, min(c + n, e) - a) for c, n, e, a in zip(corner, patch, extent, low, strict=True)]
    at = [a - c for a, c in zip(low, corner, strict=True)]
    return Overlap((low[0], low[1], low[2]), (size[0], size[1], size[2]), (at[0], at[1], at[2]))
