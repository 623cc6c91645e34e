"""Filling the places of a batch with patches: all that a process that reads has to know, and does."""

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
    """One patch to read: of which case, where, which of its database's channels, and the place it is for.

    `kept` has a bit for each channel of the database; `is_cached` says that the case lies decoded in the cache.
    A task without a place (`slot` -1) decodes the whole case into the cache.
    """

    serial: int
    slot: int
    position: int
    case: int
    corner: Index3
    kept: int
    is_cached: bool = False


@dataclass(frozen=True)
class DatabaseSource:
    """The arrays of a database, and the place on the axis of each of its channels (-1: not on it)."""

    image: ArrayLayout
    label: ArrayLayout
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TargetTable:
    """What the codes of one annotation become; `is_plain` if every code that occurs stays as it is."""

    annotation: int
    table: UInt8[np.ndarray, "256"]
    is_plain: bool


@dataclass(frozen=True)
class CaseSource:
    """Where a case lies.

    Attributes:
        tables: the number of its target tables.
        shards: names the files that it has.
        cached_at: its first byte in the cache, -1 if it is not for the cache.
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
    """Everything that patches are read from and how, in plain values that travel to other processes."""

    url: str
    databases: Sequence[DatabaseSource]
    cases: Sequence[CaseSource]
    tables: Sequence[Sequence[TargetTable]]
    patch: Index3
    num_places: int
    checksums: Checksums = "first"

    @property
    def patch_bytes(self) -> int:
        """What a patch takes: float16 images of all places, and its target."""
        return int(np.prod(self.patch)) * (2 * self.num_places + 1)

    def cached_bytes(self, case: CaseSource) -> int:
        """What a decoded case takes: float16 images of its database's channels, and its target."""
        return int(np.prod(case.extent)) * (2 * len(self.databases[case.database].places) + 1)


class PatchReader:
    """Reads patches into given arrays. Threads may share one; every process makes its own.

    Args:
        cache: bytes in which whole decoded cases lie at `CaseSource.cached_at`.
    """

    def __init__(self, sources: Sources, parts: Parts, cache: memoryview | None = None) -> None:
        self.sources = sources
        self._cache = cache
        named: list[dict[int, str]] = [{} for _ in sources.databases]
        for case in sources.cases:
            named[case.database][case.row] = case.shards
        whose = list(zip(sources.databases, named, strict=True))
        self._images = [ShardReader(parts, one.image, sources.checksums, shards) for one, shards in whose]
        self._labels = [ShardReader(parts, one.label, sources.checksums, shards) for one, shards in whose]
        self._runs: dict[tuple[int, int], tuple[tuple[ChannelRun, ...], tuple[int, ...]]] = {}

    def fill(
        self,
        task: PatchTask,
        images: Float16[np.ndarray, "modality i j k"],
        target: UInt8[np.ndarray, "i j k"],
    ) -> None:
        """Write a patch into `images` and `target`, every voxel of them.

        Beyond the case, which was cut to its brain and labels, there is nothing: 0 in the images and in the target.

        Raises:
            StoreError: a file of the case is missing or damaged.
            ResourceError: it cannot be read.
        """
        case = self.sources.cases[task.case]
        corner, size, at = _inside(task.corner, self.sources.patch, case.extent)
        runs, absent = self._placed(case.database, task.kept)
        _clear_around(images, size, at)
        _clear_around(target[None], size, at)
        if min(size) == 0:
            return
        for place in absent:
            images[place] = 0
        if task.is_cached:
            self._copy_cached(case, runs, corner, size, at, images, target)
            return
        with _naming_case(case.name):
            self._read_images(case, runs, corner, size, at, images)
            self._read_target(case, corner, size, at, target)

    def decode(self, case: CaseSource) -> None:
        """Decode a whole case into the cache.

        Raises: as `fill`.
        """
        images, target = self._cached(case)
        channels = self.sources.databases[case.database].image.chunk[0]
        runs = runs_of([(at, at) for at in range(len(images))], channels)
        with _naming_case(case.name):
            self._read_images(case, runs, (0, 0, 0), case.extent, (0, 0, 0), images)
            # Aside, and copied when it is whole: another process may be cutting patches from it already.
            finished = np.empty(case.extent, dtype=np.uint8)
            self._read_target(case, (0, 0, 0), case.extent, (0, 0, 0), finished)
            target[...] = finished

    def _placed(self, database: int, kept: int) -> tuple[tuple[ChannelRun, ...], tuple[int, ...]]:
        """The channels to read with their places, and the places that hold nothing."""
        known = self._runs.get((database, kept))
        if known is None:
            source = self.sources.databases[database]
            pairs = [(at, place) for at, place in enumerate(source.places) if place >= 0 and kept >> at & 1]
            filled = {place for _, place in pairs}
            absent = tuple(place for place in range(self.sources.num_places) if place not in filled)
            known = self._runs[database, kept] = runs_of(pairs, source.image.chunk[0]), absent
        return known

    def _read_images(
        self,
        case: CaseSource,
        runs: Sequence[ChannelRun],
        corner: Index3,
        size: Index3,
        at: Index3,
        images: Float16[np.ndarray, "modality i j k"],
    ) -> None:
        self._images[case.database].read(case.row, runs, corner, size, images, at)

    def _read_target(
        self, case: CaseSource, corner: Index3, size: Index3, at: Index3, target: UInt8[np.ndarray, "i j k"]
    ) -> None:
        reader, tables = self._labels[case.database], self.sources.tables[case.tables]
        first, *others = tables
        reader.read(case.row, (ChannelRun(first.annotation, 0),), corner, size, target[None], at)
        if not first.is_plain:  # of nothing, as around the case, the table makes nothing
            map_codes(target, first.table)
        for one in others:
            codes = np.empty((1, *size), dtype=np.uint8)
            reader.read(case.row, (ChannelRun(one.annotation, 0),), corner, size, codes)
            map_codes(codes, one.table)
            region = target[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))]
            np.copyto(region, codes[0], where=codes[0] != 0)

    def _cached(self, case: CaseSource) -> tuple[Float16[np.ndarray, "channel i j k"], UInt8[np.ndarray, "i j k"]]:
        assert self._cache is not None
        shape = (len(self.sources.databases[case.database].places), *case.extent)
        images = np.ndarray(shape, np.float16, self._cache, case.cached_at)
        return images, np.ndarray(case.extent, np.uint8, self._cache, case.cached_at + images.nbytes)

    def _copy_cached(
        self,
        case: CaseSource,
        runs: Sequence[ChannelRun],
        corner: Index3,
        size: Index3,
        at: Index3,
        images: Float16[np.ndarray, "modality i j k"],
        target: UInt8[np.ndarray, "i j k"],
    ) -> None:
        held, codes = self._cached(case)
        own = tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))
        put = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
        for run in runs:
            taken = [run.source + at * run.source_step for at in range(run.num)]
            placed = [run.target + at * run.target_step for at in range(run.num)]
            for one, other in zip(taken, placed, strict=True):
                _copy_rows(held[one][own], images[other][put])
        _copy_rows(codes[own], target[put])


@contextmanager
def _naming_case(case: str) -> Iterator[None]:
    """Put the name of a case before the message of our own errors; their type, code and file stay."""
    try:
        yield
    except MultisegError as error:
        error.args = (f"{case}: {error}", *error.args[1:])
        raise


def map_codes(codes: UInt8[np.ndarray, "*axes"], table: UInt8[np.ndarray, "256"]) -> None:
    """Put what a table says in the place of every code. The array has to be contiguous; 0 has to stay 0.

    Where little is labelled, only those eights of voxels are looked up that hold anything.
    """
    flat = codes.reshape(-1)
    if flat.size % 8 == 0:
        held = np.flatnonzero(flat.view(np.uint64))
        if len(held) <= flat.size // 64:
            eights = flat.reshape(-1, 8)
            eights[held] = table[eights[held]]
            return
    flat[:] = np.frombuffer(flat.tobytes().translate(table.tobytes()), dtype=np.uint8)


def _copy_rows(source: Shaped[np.ndarray, "*axes k"], target: Shaped[np.ndarray, "*axes k"]) -> None:
    """Copy, with a row of voxels along k as one item: numpy copies few large items faster than many small ones."""
    row = np.dtype(f"V{source.shape[-1] * source.itemsize}")
    target.view(row)[...] = source.view(row)


def _clear_around(window: Shaped[np.ndarray, "place i j k"], size: Index3, at: Index3) -> None:
    """Set what lies around a box within a window to 0, side after side."""
    left = [slice(None)] * 4
    for axis, (start, num) in enumerate(zip(at, size, strict=True), start=1):
        for side in (slice(0, start), slice(start + num, None)):
            window[(*left[:axis], side, *left[axis + 1 :])] = 0
        left[axis] = slice(start, start + num)


def _inside(corner: Index3, patch: Index3, extent: Index3) -> tuple[Index3, Index3, Index3]:
    """The part of a window that the case has: its first voxel, its size, and where it lies in the window."""
    low = [max(0, c) for c in corner]
    size = [max(0, min(c + n, e) - a) for c, n, e, a in zip(corner, patch, extent, low, strict=True)]
    at = [a - c for a, c in zip(low, corner, strict=True)]
    return (low[0], low[1], low[2]), (size[0], size[1], size[2]), (at[0], at[1], at[2])
