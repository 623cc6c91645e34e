"""Decoding every chunk of an array, and reporting those that cannot be decoded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeAlias

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.abc.store import RangeByteRequest

from multiseg.store.checks.fault_collector import Faults, advice
from multiseg.store.coordinate_chunks import decode_chunk, is_plain
from multiseg.store.damage import UNREADABLE, one_line
from multiseg.store.hierarchy import read_object
from multiseg.store.shard_decoding import decode_shard, has_own_shards

Index: TypeAlias = tuple[int, ...]
Region: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """One file of an array. `values` is None if the file is missing or cannot be decoded."""

    key: str
    index: Index
    region: Region
    values: Shaped[np.ndarray, "*axes"] | None
    is_missing: bool


def decoded_blocks(array: zarr.Array, faults: Faults, row: int | None = None) -> Iterator[Block]:
    """Decode every file of an array, or of one row of it. Damaged ones are reported as DAMAGED_CHUNK."""
    for index, region in chunks_of(array, row):
        yield _decoded(array, f"{array.path}/{array.metadata.encode_chunk_key(index)}", index, region, faults)


def chunks_of(array: zarr.Array, row: int | None = None) -> Iterator[tuple[Index, Region]]:
    """The index and the region of every file of an array, or of one row of it."""
    size = array.shards or array.chunks
    counts = [range(ceil(length / step)) for length, step in zip(array.shape, size, strict=True)]
    if row is not None:
        counts[0] = range(row // size[0], row // size[0] + 1)
    for index in itertools.product(*counts):
        region = _region(array, [n * step for n, step in zip(index, size, strict=True)], size)
        yield index, region if row is None else (slice(row, row + 1), *region[1:])


def _region(array: zarr.Array, corner: Sequence[int], size: Sequence[int]) -> Region:
    edges = zip(corner, size, array.shape, strict=True)
    return tuple(slice(start, min(start + length, end)) for start, length, end in edges)


def _decoded(array: zarr.Array, key: str, index: Index, region: Region, faults: Faults) -> Block:
    decode = _decode_plain if is_plain(array) else _decode_shard if has_own_shards(array) else _decode_by_zarr
    part = RangeByteRequest(0, 1) if decode is _decode_by_zarr else None
    try:
        data = read_object(array.store_path.store, key, part)
        if data is None:
            return Block(key, index, region, None, is_missing=True)
        if len(data) == 0:  # zarr treats an empty file as missing
            faults.damage("DAMAGED_CHUNK", key, "the file is empty", advice(array.basename))
            return Block(key, index, region, None, is_missing=False)
        return Block(key, index, region, np.asarray(decode(array, data, index, region)), is_missing=False)
    except UNREADABLE as error:
        problem = f"{_damaged_chunks(array, region)} cannot be decoded: {one_line(error)}"
        faults.damage("DAMAGED_CHUNK", key, problem, advice(array.basename))
        return Block(key, index, region, None, is_missing=False)


def _decode_plain(array: zarr.Array, data: bytes, index: Index, region: Region) -> Any:
    corners = [number * step for number, step in zip(index, array.chunks, strict=True)]
    inside = tuple(slice(part.start - n, part.stop - n) for part, n in zip(region, corners, strict=True))
    return decode_chunk(array, data)[inside]


def _decode_shard(array: zarr.Array, data: bytes, index: Index, region: Region) -> Any:
    return decode_shard(array, data, [part.stop - part.start for part in region])


def _decode_by_zarr(array: zarr.Array, data: bytes, index: Index, region: Region) -> Any:
    return array[region]


def _damaged_chunks(array: zarr.Array, region: Region) -> str:
    """The damaged inner chunks of a file, in words."""
    if array.shards is None:
        return "the chunk"
    steps = [range(part.start, part.stop, step) for part, step in zip(region, array.chunks, strict=True)]
    corners = list(itertools.product(*steps))
    bad = [corner for corner in corners if not _is_sound(array, corner)]
    if not bad:
        return "the file"
    first = ", ".join(f"{name} {position}" for name, position in zip("ijk", bad[0][2:], strict=False))
    return f"{len(bad)} of {len(corners)} chunks, the first of them at channel {bad[0][1]}, {first},"


def _is_sound(array: zarr.Array, corner: Index) -> bool:
    try:
        array[_region(array, corner, array.chunks)]
    except UNREADABLE:
        return False
    return True
