"""What has to be there: a store that tells a lost file from one that was never written.

To Zarr a chunk that is not there holds fill values. Here every chunk that a case needs is written, and a case names
its shards; so whoever reads through this store gets an error in the place of zeros.
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
    """What of a database has to be there.

    Attributes:
        in_use: by row, whether it holds a committed or superseded case.
        lengths: of the axes modality, annotation and structure, as far as every array has grown.
        chunks: axes and chunk of each array but "image" and "label".
        shards: by row in use, the text of the coordinate `shards`.
    """

    in_use: Bool[np.ndarray, " case"]
    lengths: Mapping[str, int]
    chunks: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
    shards: Mapping[int, str] = field(default_factory=dict)

    def has(self, array: str, index: tuple[int, ...]) -> bool:
        """Whether the chunk or shard of this index has to be there."""
        if array in schema.BY_CASE:
            return "/".join(map(str, index[1:])) in shards_named(self.shards.get(index[0], ""), array)
        if array not in self.chunks:
            return False
        axes, chunk = self.chunks[array]
        for axis, at, size in zip(axes, index, chunk, strict=True):
            if axis == "case" and array != "status" and not self.in_use[at * size : (at + 1) * size].any():
                return False
            if axis in self.lengths and at >= ceil(self.lengths[axis] / size):
                return False
        return True


class GuardedStore(WrapperStore[ZarrStore]):  # type: ignore[misc]
    """A store that raises where a file is not there that has to be; it is told of each database by `expect`.

    Raises (from reading):
        StoreError: of the code MISSING_FILE, with the file's name.
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

    def __str__(self) -> str:
        return self.url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return self._checked(key, await self._store.get(key, prototype, byte_range))

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The same without an event loop, which newer versions of zarr ask for where the inner store has it."""
        return self._checked(key, self._store.get_sync(key, prototype=prototype, byte_range=byte_range))

    async def get_ranges(self, key: str, byte_ranges: Any, **options: Any) -> Any:
        """Many parts at once, in newer versions of zarr."""
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

    async def _get_many(self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]) -> Any:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    def _checked(self, key: str, found: Buffer | None) -> Buffer | None:
        # Zarr takes an empty file for one that is not there.
        if found is None or len(found) == 0:
            self._check(key)
        return found

    def _check(self, key: str) -> None:
        path, is_chunk, index = key.partition("/c/")
        database, _, array = path.rpartition("/")
        expected = self._expected.get(database)
        if is_chunk and expected is not None and expected.has(array, tuple(map(int, index.split("/")))):
            raise missing_file(self.url, key)


def missing_file(url: str, key: str) -> StoreError:
    """The error for a file that has to be there and is not, or is empty."""
    array = key.partition("/c/")[0].rpartition("/")[2]
    is_held_once = array in ("image", "label")
    to_do = "ingest the case again with --redo" if is_held_once else f"repair it with: multiseg repair {url}"
    return StoreError(
        f"{url}/{key} is not there, or empty, although the store says that it has to be: the store is damaged or only "
        f"partly copied. See what else is gone with: multiseg verify {url}; then copy it again, or {to_do}.",
        code=MISSING_FILE,
        file=key,
    )
