"""How an array is chunked and compressed, as plain numbers: for readers that do not use zarr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Index4: TypeAlias = tuple[int, int, int, int]

NOTHING = 2**64 - 1
"""Offset and size of an empty chunk in a shard's index."""
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ArrayLayout:
    """One of a database's two big arrays, [case channel i j k]. A shard holds one case.

    Attributes:
        path: in the store, such as "ms/image"; a shard's key is "PATH/c/CASE/CHANNELS/I/J/K".
        shape: channels and voxels that the array has room for.
        chunk, shard: channels and voxels of an inner chunk and of a shard.
        codec: "blosc" (its header names the compressor) or "none"; a CRC-32C follows either.
    """

    path: str
    shape: Index4
    chunk: Index4
    shard: Index4
    dtype: str
    codec: str
