"""A Zarr store at a URL."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import obstore
from obstore.exceptions import NotSupportedError
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from multiseg.store.guard import GuardedStore
from multiseg.store.remote import connection
from multiseg.store.remote.connection import connect, is_web, patience, translating_errors
from multiseg.store.remote.write_back import SMALL_BYTES, WriteBack

READS_AT_ONCE = 64
"""Parallel requests to an object store."""
PARTS_AT_ONCE = 4
"""Parallel parts of an upload. More would time out on a slow connection."""
FENCE_SECONDS = 30
"""How often a writer checks that it still holds the store."""
STATES_AT_ONCE = 16
"""Cases that are committed together over a network."""
STATES_SECONDS = 30
"""After this time, the written cases are committed together with the next one."""


class RemoteStore(ZarrStore):  # type: ignore[misc]
    """The keys and values of a store at a URL.

    If the server does not support range requests, whole objects are read. A writer must hold the store's lease
    (`multiseg.store.remote.writer_lease`); one that lost it, for example because its computer slept, is stopped. After
    `gather`, small objects are buffered and sent together (`WriteBack`). If the writer dies, the cases that were not
    sent are lost as a whole, and the next ingest writes them again.
    """

    supports_writes = supports_deletes = True

    def __init__(self, url: str, read_only: bool, fence: Callable[[], None]) -> None:
        super().__init__(read_only=read_only)
        self.url = url
        self._fence = fence
        self._fenced_at = time.time()
        self._objects = connect(url)
        self._keys: ObjectStore[Any] = ObjectStore(self._objects, read_only=read_only)
        self._run = patience(url).run_async
        self._buffer: WriteBack | None = None
        self._num_states, self._states_since = 0, 0.0
        self._turns = asyncio.Semaphore(connection.WEB_READS_AT_ONCE if is_web(url) else READS_AT_ONCE)
        self._supports_ranges = True
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
        if self._buffer is not None and key in self._buffer:
            kept = self._buffer.get(key)
            return kept if kept is None or byte_range is None else kept[_part(byte_range, len(kept))]
        with translating_errors(self.url):
            async with self._turns:
                value = await self._run(lambda: self._get(key, prototype, byte_range))
        if self._buffer is not None and byte_range is None:
            self._buffer.keep(key, value)
            if value is None and key.endswith("/zarr.json") and key.count("/") == 1:  # a new database
                await self._note_if_empty(key.removesuffix("zarr.json"))
        return value

    async def _note_if_empty(self, prefix: str) -> None:
        """Ask once whether the server has anything at a prefix, instead of once for each object."""
        assert self._buffer is not None
        with translating_errors(self.url):
            listing = await self._run(lambda: obstore.list_with_delimiter_async(self._objects, prefix))
        if not listing["objects"] and not listing["common_prefixes"]:
            self._buffer.keep_empty(prefix)

    async def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        if byte_range is None:
            return await self._keys.get(key, prototype)
        if self._supports_ranges:
            try:
                return await self._keys.get(key, prototype, byte_range)
            except NotSupportedError:
                self._supports_ranges = False
        whole = self._whole.get(key) or await self._keys.get(key, prototype)
        if whole is None:
            return None
        self._whole[key] = whole
        self._whole.move_to_end(key)
        while len(self._whole) > connection.KEPT_OBJECTS:
            self._whole.popitem(last=False)
        return whole[_part(byte_range, len(whole))]

    get_partial_values = GuardedStore.get_partial_values  # by `get`

    async def exists(self, key: str) -> bool:
        if self._buffer is not None and key in self._buffer:
            return self._buffer.get(key) is not None
        with translating_errors(self.url):
            return await self._run(lambda: self._keys.exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        self._check_may_write()
        if self._buffer is None or len(value) > SMALL_BYTES:
            if self._buffer is not None:
                self._buffer.forget(key)
            await self._send(key, value)
            return
        self._buffer.write(key, default_buffer_prototype().buffer.from_bytes(value.to_bytes()))
        if "/status/c/" in key:
            self._states_since = self._states_since if self._num_states else time.monotonic()
            self._num_states += 1
            if self._num_states >= STATES_AT_ONCE or time.monotonic() - self._states_since >= STATES_SECONDS:
                await self.send()

    async def delete(self, key: str) -> None:
        self._check_may_write()
        if self._buffer is None:
            await self._send(key, None)
        else:
            self._buffer.write(key, None)

    async def delete_dir(self, prefix: str) -> None:
        if self._buffer is None:
            await super().delete_dir(prefix)
            return
        self._check_may_write()
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        stored = [] if self._buffer.is_empty(prefix) else [key async for key in self._keys_below(prefix)]
        for key in {*stored, *self._buffer.below(prefix)}:
            self._buffer.write(key, None)

    def gather(self) -> None:
        """Buffer small objects from now on, until `sync_names`. Cases are committed several at a time."""
        self._buffer = self._buffer or WriteBack()

    async def send(self) -> None:
        """Send all buffered writes; the states of the rows last."""
        if self._buffer is not None:
            self._check_may_write()
            await self._buffer.send(self._send)
            self._num_states = 0

    def sync_names(self) -> None:
        """Wait until the server has everything that was written."""
        sync(self.send())

    async def _send(self, key: str, value: Buffer | None) -> None:
        async def request() -> None:
            if value is None:
                await self._keys.delete(key)
            else:
                await obstore.put_async(self._objects, key, value.as_buffer_like(), max_concurrency=PARTS_AT_ONCE)

        with translating_errors(self.url):
            async with self._turns:
                await self._run(request)

    def _check_may_write(self) -> None:
        self._check_writable()
        # The wall clock, since it also counts the time that the computer sleeps.
        if time.time() - self._fenced_at >= FENCE_SECONDS:
            self._fence()
            self._fenced_at = time.time()

    def list(self) -> AsyncIterator[str]:
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        await self.send()
        async for key in self._keys_below(prefix):
            yield key

    async def _keys_below(self, prefix: str) -> AsyncIterator[str]:
        with translating_errors(self.url):
            for key in await self._run(lambda: _all(self._keys.list_prefix(prefix))):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        await self.send()
        with translating_errors(self.url):
            for key in await self._run(lambda: _all(self._keys.list_dir(prefix))):
                yield key

    @property
    def supports_listing(self) -> bool:
        return not is_web(self.url)


async def _all(keys: AsyncIterator[str]) -> Sequence[str]:
    return [key async for key in keys]


def _part(request: ByteRequest, size: int) -> slice:
    if isinstance(request, RangeByteRequest):
        return slice(request.start, request.end)
    if isinstance(request, OffsetByteRequest):
        return slice(request.offset, size)
    assert isinstance(request, SuffixByteRequest)
    return slice(max(0, size - request.suffix), size)
