"""A case's voxels as shards: what zarr reads as its sharding codec, with the packing chosen chunk by chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import TypeAlias

import google_crc32c
import numpy as np
from jaxtyping import Shaped
from numcodecs import blosc

from multiseg.store.array_layout import CHECKSUM_BYTES, NOTHING, Index4

Block: TypeAlias = Shaped[np.ndarray, "channel i j k"]

KEPT_SHARE = 0.5
"""LZ4 hardly shrinks the noise within a brain. A chunk that it leaves larger than this is stored as it is: that takes
a fifth more room, and a window of such a chunk is copied without decoding the rest of it."""


def _as_it_is(block: Block) -> bytes:
    return block.tobytes()


def _lz4(block: Block, name: bytes = b"lz4") -> bytes:
    packed: bytes = blosc.compress(block, name, 5, blosc.NOSHUFFLE)
    if len(packed) > KEPT_SHARE * block.nbytes:
        packed = blosc.compress(block, b"lz4", 0, blosc.NOSHUFFLE)
    return packed


def _zstd(block: Block) -> bytes:
    packed: bytes = blosc.compress(block, b"zstd", 3, blosc.SHUFFLE)
    return packed


PACKERS: dict[str, Callable[[Block], bytes]] = {
    "none": _as_it_is,
    "lz4": _lz4,
    "lz4hc": partial(_lz4, name=b"lz4hc"),
    "zstd": _zstd,
}
"""By the names of `schema.CODECS`, whose entries say the same to zarr."""


def shards_of(volume: Block, chunk: Index4, shard: Index4, codec: str) -> Iterator[tuple[str, bytes]]:
    """The shards of a case that hold anything, each by its place "CHANNELS/I/J/K" and its bytes.

    The layout is that of Zarr's sharding codec with the index at the end; chunks lie in the order of the index, so
    that neighbours along k are neighbours in the file.

    Args:
        chunk, shard: channels and voxels of each; a shard has whole chunks.
    """
    counts = [range(-(-n // step)) for n, step in zip(volume.shape, shard, strict=True)]
    for place in itertools.product(*counts):
        part = volume[tuple(slice(at * step, (at + 1) * step) for at, step in zip(place, shard, strict=True))]
        packed = _shard(part, chunk, tuple(s // c for s, c in zip(shard, chunk, strict=True)), PACKERS[codec])
        if packed:
            yield "/".join(str(at) for at in place), packed


def _shard(part: Block, chunk: Index4, grid: tuple[int, ...], pack: Callable[[Block], bytes]) -> bytes:
    body = bytearray()
    index = np.full((prod(grid), 2), NOTHING, dtype="<u8")
    for number, at in enumerate(np.ndindex(grid)):
        piece = part[tuple(slice(a * n, (a + 1) * n) for a, n in zip(at, chunk, strict=True))]
        if not piece.view(f"u{piece.itemsize}").any():
            continue
        block = np.zeros(chunk, dtype=part.dtype)
        block[tuple(slice(n) for n in piece.shape)] = piece
        packed = with_checksum(pack(block))
        index[number] = len(body), len(packed)
        body += packed
    return bytes(body + with_checksum(index.tobytes())) if body else b""


def with_checksum(packed: bytes) -> bytes:
    """Bytes and their CRC-32C, as Zarr's codec of that name writes them."""
    return packed + int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")


def is_sound(packed: bytes | memoryview) -> bool:
    """Whether the bytes are those that the checksum behind them was made of."""
    found: int = google_crc32c.value(bytes(packed[:-CHECKSUM_BYTES]))
    return found == int.from_bytes(packed[-CHECKSUM_BYTES:], "little")
