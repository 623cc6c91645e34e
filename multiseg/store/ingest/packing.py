"""Encoding a case's voxels into shards that zarr's sharding codec reads, with the compression chosen per chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil, prod
from typing import TypeAlias

import google_crc32c
import numpy as np
from jaxtyping import Shaped
from numcodecs import blosc

from multiseg.store.array_layout import CHECKSUM_BYTES, NOTHING, Index4

Block: TypeAlias = Shaped[np.ndarray, "channel i j k"]

KEPT_SHARE = 0.5
"""LZ4 hardly shrinks the noise inside a brain. A chunk that stays larger than this share of its size is stored
uncompressed: that takes a fifth more space, but a window of the chunk can be copied without decoding the rest."""


def _lz4(block: Block, name: bytes = b"lz4") -> bytes:
    packed: bytes = blosc.compress(block, name, 5, blosc.NOSHUFFLE)
    if len(packed) > KEPT_SHARE * block.nbytes:
        packed = blosc.compress(block, b"lz4", 0, blosc.NOSHUFFLE)
    return packed


def _zstd(block: Block) -> bytes:
    packed: bytes = blosc.compress(block, b"zstd", 3, blosc.SHUFFLE)
    return packed


PACKERS: dict[str, Callable[[Block], bytes]] = {
    "none": lambda block: block.tobytes(),
    "lz4": _lz4,
    "lz4hc": partial(_lz4, name=b"lz4hc"),
    "zstd": _zstd,
}
"""Compression by the names of `schema.CODECS`, which has the same codecs for zarr."""


def shards_of(volume: Block, chunk: Index4, shard: Index4, codec: str) -> Iterator[tuple[str, bytes]]:
    """The non-empty shards of a case: the position "CHANNELS/I/J/K" and the bytes of each.

    The layout is that of Zarr's sharding codec with the index at the end. Chunks are in the order of the index, so that
    neighbours along k are neighbours in the file.

    Args:
        chunk, shard: their shapes in channels and voxels; a shard consists of whole chunks.
    """
    chunks_per_shard = tuple(edge // chunk_edge for edge, chunk_edge in zip(shard, chunk, strict=True))
    shards_per_axis = [range(ceil(length / edge)) for length, edge in zip(volume.shape, shard, strict=True)]
    for position in itertools.product(*shards_per_axis):
        packed = _shard(volume[_block_at(position, shard)], chunk, chunks_per_shard, PACKERS[codec])
        if packed:
            yield "/".join(map(str, position)), packed


def _block_at(position: Sequence[int], shape: Index4) -> tuple[slice, ...]:
    """The slices of the block at a position in a grid of blocks of this shape."""
    return tuple(slice(index * edge, (index + 1) * edge) for index, edge in zip(position, shape, strict=True))


def _shard(part: Block, chunk: Index4, grid: tuple[int, ...], pack: Callable[[Block], bytes]) -> bytes:
    body = bytearray()
    index = np.full((prod(grid), 2), NOTHING, dtype="<u8")
    filled = [range(ceil(length / edge)) for length, edge in zip(part.shape, chunk, strict=True)]
    for position in itertools.product(*filled):
        piece = part[_block_at(position, chunk)]
        if not piece.view(f"u{piece.itemsize}").any():  # as bits: -0.0 and NaN are not empty
            continue
        block = np.zeros(chunk, dtype=part.dtype)
        block[tuple(map(slice, piece.shape))] = piece
        packed = with_checksum(pack(block))
        index[np.ravel_multi_index(position, grid)] = len(body), len(packed)
        body += packed
    return bytes(body + with_checksum(index.tobytes())) if body else b""


def with_checksum(packed: bytes) -> bytes:
    """Append a CRC-32C to bytes, as Zarr's crc32c codec does."""
    return packed + int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")


def is_sound(packed: bytes | memoryview) -> bool:
    """Whether the CRC-32C at the end of bytes is right."""
    checksum: int = google_crc32c.value(bytes(packed[:-CHECKSUM_BYTES]))
    return checksum == int.from_bytes(packed[-CHECKSUM_BYTES:], "little")
