"""Decoding whole shards, for checks that look at every voxel: zarr-python spends more time on each chunk's tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import ceil, prod

import numpy as np
import zarr
from jaxtyping import Shaped
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, Endian, ShardingCodec

from multiseg.store.array_layout import CHECKSUM_BYTES, NOTHING
from multiseg.store.ingest.packing import is_sound

_COMPRESSED, _UNCOMPRESSED = (BytesCodec, BloscCodec, Crc32cCodec), (BytesCodec, Crc32cCodec)


def has_own_shards(array: zarr.Array) -> bool:
    """Whether `decode_shard` can decode an array: a file for each case or more, encoded as `ingest` does."""
    codec = array.metadata.codecs[0]
    if not isinstance(codec, ShardingCodec) or len(array.metadata.codecs) > 1 or array.shards[0] != 1:
        return False
    return (
        _types(codec.codecs) in (_COMPRESSED, _UNCOMPRESSED)
        and codec.codecs[0].endian in (None, Endian.little)
        and _types(codec.index_codecs) == _UNCOMPRESSED
        and codec.index_codecs[0].endian is Endian.little
        and codec.index_location.value == "end"
        and not array.fill_value
    )


def _types(codecs: Sequence[object]) -> tuple[type, ...]:
    return tuple(type(codec) for codec in codecs)


def decode_shard(array: zarr.Array, data: bytes, size: Sequence[int]) -> Shaped[np.ndarray, "case channel i j k"]:
    """The first voxels of a shard, as many as `size` along each axis.

    Raises:
        ValueError, RuntimeError: a checksum is wrong, or the bytes cannot be decoded.
    """
    chunk = array.chunks
    grid = [shard // edge for shard, edge in zip(array.shards, chunk, strict=True)]
    index = data[-(16 * prod(grid) + CHECKSUM_BYTES) :]
    if len(index) < 16 * prod(grid) + CHECKSUM_BYTES or not is_sound(index):
        raise ValueError("the checksum of the index is wrong")
    places = np.frombuffer(index[:-CHECKSUM_BYTES], dtype="<u8").reshape(*grid, 2)
    is_compressed = _types(array.metadata.codecs[0].codecs) == _COMPRESSED
    values = np.zeros(tuple(size), dtype=array.dtype)
    for position in itertools.product(*(range(ceil(n / edge)) for n, edge in zip(size, chunk, strict=True))):
        offset, length = (int(number) for number in places[position])
        if (offset, length) == (NOTHING, NOTHING):
            continue
        packed = memoryview(data)[offset : offset + length]
        if len(packed) < length or not is_sound(packed):
            raise ValueError("the checksum of a chunk is wrong")
        packed = packed[:-CHECKSUM_BYTES]
        block = np.frombuffer(blosc.decompress(packed) if is_compressed else packed, dtype=array.dtype).reshape(chunk)
        target = tuple(slice(n * edge, (n + 1) * edge) for n, edge in zip(position, chunk, strict=True))
        part = values[target]
        part[...] = block[tuple(map(slice, part.shape))]
    return values
