"""How an array's voxels are cut and packed, in plain numbers: for readers that do without zarr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Index4: TypeAlias = tuple[int, int, int, int]

NOTHING = 2**64 - 1
"""What the index of a shard has, as offset and as size, for a chunk that holds nothing."""
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ArrayLayout:
    """One of a database's two big arrays, [case channel i j k], with a shard's axis `case` of 1.

    Attributes:
        path: below the store, such as "ms/image"; a shard's key is "PATH/c/CASE/CHANNELS/I/J/K".
        shape: channels and voxels there is room for.
        chunk, shard: channels and voxels of an inner chunk and of a shard.
        codec: "blosc" (which tells by itself how it packed) or "none"; a CRC-32C follows either.
    """

    path: str
    shape: Index4
    chunk: Index4
    shard: Index4
    dtype: str
    codec: str
