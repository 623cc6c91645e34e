"""A store that raises an error for a missing file, where Zarr would return fill values.

To Zarr, a missing chunk holds fill values. Here every chunk that a case needs is written, and a case names its shards.
So this store can tell a lost file from one that was never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Bool
from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.shard_names import MISSING_FILE, shards_named


@dataclass(frozen=True, eq=False)
class Expected:
    """The chunks and shards that a database must have.

    Attributes:
        in_use: for each row, whether it holds a committed or superseded case.
        lengths: lengths of the axes modality, annotation and structure that every array has reached.
        chunks: axes and chunk shape of each array except "image" and "label".
        shards: for each row in use, its text in the coordinate `shards`.
    """

    in_use: Bool[np.ndarray, " case"]
    lengths: Mapping[str, int]
    chunks: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
    shards: Mapping[int, str] = field(default_factory=dict)

    def has(self, array: str, index: tuple[int, ...]) -> bool:
        """Whether the chunk or shard with this index must exist."""
        if array in schema.BY_CASE:
            return "/".join(map(str, index[1:])) in shards_named(self.shards.get(index[0], ""), array)
        if array not in self.chunks:
            return False
        axes, chunk = self.chunks[array]
        for axis, position, size in zip(axes, index, chunk, strict=True):
            if axis == "case" and array != "status" and not self.in_use[position * size : (position + 1) * size].any():
                return False
            if axis in self.lengths and position >= ceil(self.lengths[axis] / size):
                return False
        return True


class GuardedStore(WrapperStore[ZarrStore]):  # type: ignore[misc]
    """A store that raises an error if a file that must exist is missing. `expect` tells it about each database.

    Raises (from reading):
        StoreError: with the code MISSING_FILE and the file's name.
    """

    def __init__(self, store: ZarrStore, url: str, expected: dict[str, Expected] | None = None) -> None:
        super().__init__(store)
        self.url = url
        self._expected: dict[str, Expected] = {} if expected is None else expected

    def _with_store(self, store: ZarrStore) -> GuardedStore:
        return GuardedStore(store, self.url, self._expected)

    def expect(self, database: str, expected: Expected) -> None:
        self._expected[database] = expected

    @property
    def inner(self) -> ZarrStore:
        """The store without the guard."""
        return self._store

    @property
    def innermost(self) -> ZarrStore:
        """The store that has the objects: a rehearsal of a repair wraps another."""
        return getattr(self._store, "innermost", self._store)

    def __str__(self) -> str:
        return self.url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return self._checked(key, await self._store.get(key, prototype, byte_range))

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As `get`, without an event loop, if the inner store has it. Newer versions of zarr call it, too."""
        return self._checked(key, self._store.get_sync(key, prototype=prototype, byte_range=byte_range))

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`, without an event loop."""
        self._store.set_sync(key, value)

    async def get_ranges(self, key: str, byte_ranges: Any, **options: Any) -> Any:
        """Many byte ranges of one object; newer versions of zarr call it."""
        try:
            async for parts in self._store.get_ranges(key, byte_ranges, **options):
                yield parts
        except BaseExceptionGroup as errors:
            if errors.subgroup(FileNotFoundError):
                self._check(key)
            raise

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    _get_many = ZarrStore._get_many  # by `get`, which checks

    def _checked(self, key: str, value: Buffer | None) -> Buffer | None:
        # Zarr treats an empty file as missing.
        if value is None or len(value) == 0:
            self._check(key)
        return value

    def _check(self, key: str) -> None:
        path, is_chunk, index = key.partition("/c/")
        database, _, array = path.rpartition("/")
        expected = self._expected.get(database)
        if is_chunk and expected is not None and expected.has(array, tuple(map(int, index.split("/")))):
            raise missing_file(self.url, key)


def missing_file(url: str, key: str) -> StoreError:
    """The error for a file that must exist but is missing or empty."""
    array = key.partition("/c/")[0].rpartition("/")[2]
    is_repairable = array not in schema.VOLUMES  # nothing else holds the voxels
    remedy = f"repair it with: multiseg repair {url}" if is_repairable else "ingest the case again with --redo"
    message = (
        f"{url}/{key} is missing or empty, although the store needs it: the store is damaged, or was not copied "
        f"completely. List all missing files with: multiseg verify {url}; then copy the store again, or {remedy}."
    )
    return StoreError(message, code=MISSING_FILE, file=key)
