"""Read windows directly from the shards of a store: only the chunks that they overlap, each decoded and copied once.

Zarr's sharding codec (version 1.0 of its specification) puts many compressed chunks into one file, the shard, followed
by an index: for each chunk its offset and size, then a CRC-32C. The index is read once. zarr-python spends several
times the cost of the decoding on every chunk (tasks, an opened file, codecs in Python), so it is not used here; this
reader is tested against it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from struct import Struct
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped
from numcodecs import blosc

from multiseg.errors import StoreError
from multiseg.store.array_layout import CHECKSUM_BYTES, NOTHING, ArrayLayout
from multiseg.store.byte_ranges import Parts
from multiseg.store.damage import DAMAGED
from multiseg.store.ingest.packing import is_sound
from multiseg.store.shard_names import MISSING_FILE, shards_named
from multiseg.types import Index3

Checksums = Literal["first", "always", "never"]
KEPT_INDICES = 4096
"""Number of shards whose index stays in memory, 8 kB each."""
_BLOSC_HEADER, _BLOSC_COPIED = Struct("<2xBxI4xI"), 2
"""Flags, unpacked bytes and packed bytes including the header; and the flag of data that is stored uncompressed."""


@dataclass(frozen=True)
class ChannelRun:
    """Channels that are copied together: `num` of them from `source` on, to `target` on, with steps."""

    source: int
    target: int
    num: int = 1
    source_step: int = 1
    target_step: int = 1


def runs_of(pairs: Iterable[tuple[int, int]], chunk: int) -> tuple[ChannelRun, ...]:
    """(channel, place) pairs as few runs, each within one chunk of `chunk` channels.

    >>> runs_of([(0, 1), (1, 2), (3, 4)], chunk=4)
    (ChannelRun(0, 1, 2, 1, 1), ChannelRun(3, 4, 1, 1, 1))
    """
    runs: list[ChannelRun] = []
    for source, target in sorted(pairs):
        last = runs[-1] if runs and runs[-1].source // chunk == source // chunk else None
        if last and last.num == 1:
            runs[-1] = ChannelRun(last.source, last.target, 2, source - last.source, target - last.target)
        elif last and (source, target) == (
            last.source + last.num * last.source_step,
            last.target + last.num * last.target_step,
        ):
            runs[-1] = replace(last, num=last.num + 1)
        else:
            runs.append(ChannelRun(source, target))
    return tuple(runs)


class _Shard:
    """The index of one shard, and which of its chunks have a verified checksum."""

    def __init__(self, key: str, index: bytes) -> None:
        self.key = key
        places = np.frombuffer(index, dtype="<u8").astype(np.uint64)
        self.places = memoryview(places.tobytes()).cast("Q")
        self.seen = bytearray(len(self.places) // 2)


class _Cut(NamedTuple):
    """The overlap of a window with one row of chunks along an axis: the shard, the chunk in it, the number of voxels,
    and the bytes before them in the chunk and in the window."""

    shard: int
    chunk: int
    num: int
    source: int
    target: int


class _Piece(NamedTuple):
    """The overlap of a window with one chunk: its number in the shard's index, its size, and the bytes before it."""

    number: int
    num_i: int
    num_j: int
    num_k: int
    source: int
    target: int


class _Copy(NamedTuple):
    """A run in bytes: its channels, the offset of the first in a chunk and in the window, and the strides there."""

    num: int
    source: int
    source_strides: tuple[int, ...]
    target: int
    target_strides: tuple[int, ...]


class ShardReader:
    """Reads windows of one array, [case channel i j k], of a store. Threads may share one.

    Args:
        checksums: whether each chunk's CRC-32C is checked when this reader "first" reads it, "always" or "never". The
            index of a shard is always checked.
        shards: by row, the text that names the files of a case. A file that is not named is empty.

    Raises (from `read`):
        StoreError: a shard is missing, truncated, or damaged; the message names the file.
        ResourceError: it cannot be read.
    """

    def __init__(
        self,
        parts: Parts,
        layout: ArrayLayout,
        checksums: Checksums = "first",
        shards: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.parts = parts
        self._named = shards
        self.layout = layout
        self.checksums = checksums
        self._shards: OrderedDict[tuple[int, ...], _Shard | None] = OrderedDict()
        self._thread = threading.local()
        channels, *edges = layout.chunk
        self._grid = tuple(s // c for s, c in zip(layout.shard, layout.chunk, strict=True))
        size = np.dtype(layout.dtype).itemsize
        self._strides = tuple(size * prod(layout.chunk[axis + 1 :]) for axis in range(4))
        self._chunk_bytes = size * channels * prod(edges)
        # A row of voxels along k is copied as one item: numpy copies few large items faster than many small ones.
        self._rows = [np.dtype(f"V{max(1, size * n)}") for n in range(layout.chunk[3] + 1)]
        self._nothing = [np.zeros((), row) for row in self._rows]

    def read(
        self,
        row: int,
        runs: Sequence[ChannelRun],
        corner: Index3,
        size: Index3,
        out: Shaped[np.ndarray, "place i j k"],
        at: Index3 = (0, 0, 0),
    ) -> None:
        """Fill `out`, from voxel `at` on, with a window of the channels of a case; it must be inside the array.

        The rest of `out` is not changed.
        """
        for channels, group in groupby(runs, key=lambda run: run.source // self.layout.chunk[0]):
            copies = [self._copy(run, out.strides) for run in group]
            for place, pieces in self._by_shard(channels, corner, size, at, out.strides).items():
                self._fill(self._shard((row, channels // self._grid[0], *place)), pieces, copies, out)

    def _copy(self, run: ChannelRun, strides: tuple[int, ...]) -> _Copy:
        source = run.source % self.layout.chunk[0] * self._strides[0]
        source_strides = (self._strides[0] * run.source_step, *self._strides[1:3])
        target_strides = (strides[0] * run.target_step, *strides[1:3])
        return _Copy(run.num, source, source_strides, run.target * strides[0], target_strides)

    def _by_shard(
        self, channels: int, corner: Index3, size: Index3, at: Index3, strides: tuple[int, ...]
    ) -> dict[Index3, list[_Piece]]:
        """The pieces of a window by shard; `channels` is the row of chunks along the channel axis."""
        axes = zip(corner, size, at, self.layout.chunk[1:], self._grid[1:], self._strides[1:], strides[1:], strict=True)
        along_i, along_j, along_k = (list(_cuts(*axis)) for axis in axes)
        num_channels, num_i, num_j, num_k = self._grid
        first = channels % num_channels * num_i * num_j * num_k
        by_shard: dict[Index3, list[_Piece]] = {}
        for i in along_i:
            for j in along_j:
                number = first + (i.chunk * num_j + j.chunk) * num_k
                source, target = i.source + j.source, i.target + j.target
                for k in along_k:
                    piece = _Piece(number + k.chunk, i.num, j.num, k.num, source + k.source, target + k.target)
                    by_shard.setdefault((i.shard, j.shard, k.shard), []).append(piece)
        return by_shard

    def _fill(
        self, shard: _Shard | None, pieces: list[_Piece], copies: list[_Copy], out: Shaped[np.ndarray, "place i j k"]
    ) -> None:
        chunks = {} if shard is None else self._bytes(shard, [piece.number for piece in pieces])
        for number, num_i, num_j, num_k, source, target in pieces:
            row, packed = self._rows[num_k], chunks.get(number)
            chunk = None if packed is None else self._decoded(packed, shard, number)
            for num, from_, from_strides, to, to_strides in copies:
                shape = (num, num_i, num_j)
                place = np.ndarray(shape, row, out, to + target, to_strides)
                if chunk is None:
                    place[...] = self._nothing[num_k]
                else:
                    place[...] = np.ndarray(shape, row, chunk, from_ + source, from_strides)

    def _bytes(self, shard: _Shard, numbers: Sequence[int]) -> dict[int, memoryview]:
        """The packed bytes of those chunks that are not empty; checksums are checked as `checksums` says."""
        places, seen = shard.places, shard.seen
        filled = [n for n in numbers if places[2 * n] != NOTHING]
        fresh = [n for n in filled if not seen[n]]
        ranges = [(places[2 * n], places[2 * n] + places[2 * n + 1]) for n in filled]
        chunks = dict(zip(filled, self.parts.read(shard.key, ranges, bool(fresh)), strict=True)) if filled else {}
        to_check = {"always": filled, "first": fresh, "never": []}[self.checksums]
        bad = [n for n in to_check if not is_sound(chunks[n])]
        if bad:
            if self.parts.forget(shard.key):
                return self._bytes(shard, numbers)
            raise _damaged(shard.key, f"the checksum of chunk {bad[0]} is wrong")
        for n in fresh:
            seen[n] = 1
        return chunks

    def _decoded(self, packed: memoryview, shard: _Shard | None, number: int) -> memoryview | np.ndarray:
        """A chunk's voxels; valid until this thread decodes the next one."""
        assert shard is not None
        body = packed[:-CHECKSUM_BYTES]
        if self.layout.codec == "none":
            if len(body) != self._chunk_bytes:
                raise _damaged(shard.key, f"chunk {number} has {len(body)} bytes, not {self._chunk_bytes}")
            return body
        if len(body) < _BLOSC_HEADER.size:
            raise _damaged(shard.key, f"chunk {number} has only {len(body)} bytes")
        flags, unpacked, size = _BLOSC_HEADER.unpack_from(body)
        is_copied = bool(flags & _BLOSC_COPIED)
        # blosc trusts the header; with fewer bytes the scratch would keep a part of the chunk that was decoded before.
        if unpacked != self._chunk_bytes or size != len(body) or (is_copied and size != _BLOSC_HEADER.size + unpacked):
            raise _damaged(shard.key, f"the header of chunk {number} says {size} bytes for {unpacked}, which is wrong")
        if is_copied:
            return body[_BLOSC_HEADER.size :]
        scratch: np.ndarray | None = getattr(self._thread, "scratch", None)
        if scratch is None:
            scratch = self._thread.scratch = np.empty(self._chunk_bytes, np.uint8)
        try:
            blosc.decompress(body, scratch)
        except (RuntimeError, ValueError) as error:
            raise _damaged(shard.key, f"cannot unpack chunk {number} ({error})") from error
        return scratch

    def _shard(self, place: tuple[int, ...]) -> _Shard | None:
        try:
            return self._shards[place]
        except KeyError:
            pass
        shard = self._opened(place)
        self._shards[place] = shard
        while len(self._shards) > KEPT_INDICES:
            self._shards.popitem(last=False)
        return shard

    def _opened(self, place: tuple[int, ...]) -> _Shard | None:
        key, size = f"{self.layout.path}/c/{'/'.join(map(str, place))}", 16 * prod(self._grid) + CHECKSUM_BYTES
        tail = self.parts.tail(key, size)
        if tail is None:
            row, *rest = place
            array = self.layout.path.rpartition("/")[2]
            if "/".join(map(str, rest)) in shards_named(self._named.get(row, ""), array):
                raise StoreError(f"{key} {_MISSING}", code=MISSING_FILE, file=key)
            return None
        if len(tail) != size or not is_sound(memoryview(tail)):
            if self.parts.forget(key):
                return self._opened(place)
            raise _damaged(key, "its index is invalid: the file is truncated or damaged")
        return _Shard(key, tail[:-CHECKSUM_BYTES])


_MISSING = (
    "is missing: the store is damaged or only partly copied. Copy it again, or ingest the case again with --redo. "
    "Find other missing files with: multiseg verify STORE."
)


def _damaged(key: str, what: str) -> StoreError:
    remedy = "Find all damage with: multiseg verify STORE, and ingest those cases again with --redo."
    return StoreError(f"{key}: {what}. {remedy}", code=DAMAGED, file=key)


def _cuts(
    corner: int, size: int, at: int, edge: int, num_in_shard: int, source_stride: int, target_stride: int
) -> Iterator[_Cut]:
    """A window cut along one axis at the faces of the chunks."""
    done = 0
    while done < size:
        chunk, low = divmod(corner + done, edge)
        num = min(edge - low, size - done)
        shard, number = divmod(chunk, num_in_shard)
        yield _Cut(shard, number, num, low * source_stride, (at + done) * target_stride)
        done += num
