"""A store behind a URL: its keys as Zarr reads and writes them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import obstore
from obstore.exceptions import NotSupportedError
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from multiseg.store.connection import KEPT_OBJECTS, WEB_READS_AT_ONCE, connect, in_words, is_web

READS_AT_ONCE = 64
"""Requests under way to an object store."""
PARTS_AT_ONCE = 4
"""Of an upload. More would run into the time limit of each on a slow line."""
FENCE_SECONDS = 30
"""How often a writer looks whether the store is still its own."""


class RemoteStore(ZarrStore):  # type: ignore[misc]
    """The keys and values of a store behind a URL.

    A server that answers no range requests is read a whole object at a time. Whoever writes has to hold the
    store (`multiseg.store.hold`); a writer that has lost it, since its computer slept, is stopped.
    """

    def __init__(self, url: str, read_only: bool, fence: Callable[[], None]) -> None:
        super().__init__(read_only=read_only)
        self.url = url
        self._fence = fence
        self._fenced_at = time.time()
        self._objects = connect(url)
        self._keys: ObjectStore[Any] = ObjectStore(self._objects, read_only=read_only)
        self._turns = asyncio.Semaphore(WEB_READS_AT_ONCE if is_web(url) else READS_AT_ONCE)
        self._gives_parts = True
        self._whole: OrderedDict[str, Buffer] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # By URL, so that no credentials travel and every process has connections of its own.
        return RemoteStore, (self.url, self.read_only, self._fence)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and (self.url, self.read_only) == (other.url, other.read_only)

    def __str__(self) -> str:
        return self.url

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        return RemoteStore(self.url, read_only, self._fence)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with in_words(self.url):
            async with self._turns:
                return await self._get(key, prototype, byte_range)

    async def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        if byte_range is None:
            return await self._keys.get(key, prototype)
        if self._gives_parts:
            try:
                return await self._keys.get(key, prototype, byte_range)
            except NotSupportedError:
                self._gives_parts = False
        whole = self._whole.get(key) or await self._keys.get(key, prototype)
        if whole is None:
            return None
        self._whole[key] = whole
        self._whole.move_to_end(key)
        while len(self._whole) > KEPT_OBJECTS:
            self._whole.popitem(last=False)
        return whole[_part(byte_range, len(whole))]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        with in_words(self.url):
            found: bool = await self._keys.exists(key)
            return found

    async def set(self, key: str, value: Buffer) -> None:
        self._check_may_write()
        with in_words(self.url):
            await obstore.put_async(self._objects, key, value.as_buffer_like(), max_concurrency=PARTS_AT_ONCE)

    async def delete(self, key: str) -> None:
        self._check_may_write()
        with in_words(self.url):
            await self._keys.delete(key)

    def _check_may_write(self) -> None:
        self._check_writable()
        # By the clock on the wall, which goes on while a computer sleeps.
        if time.time() - self._fenced_at >= FENCE_SECONDS:
            self._fence()
            self._fenced_at = time.time()

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        with in_words(self.url):
            async for key in self._keys.list_prefix(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with in_words(self.url):
            async for key in self._keys.list_dir(prefix):
                yield key

    @property
    def supports_writes(self) -> bool:
        return True

    @property
    def supports_deletes(self) -> bool:
        return True

    @property
    def supports_listing(self) -> bool:
        return not is_web(self.url)


def _part(request: ByteRequest, size: int) -> slice:
    if isinstance(request, RangeByteRequest):
        return slice(request.start, request.end)
    if isinstance(request, OffsetByteRequest):
        return slice(request.offset, size)
    assert isinstance(request, SuffixByteRequest)
    return slice(max(0, size - request.suffix), size)
