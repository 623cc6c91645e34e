"""A store behind a URL: its keys as Zarr reads and writes them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import obstore
from obstore.exceptions import NotSupportedError
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from multiseg.store.remote.connection import KEPT_OBJECTS, WEB_READS_AT_ONCE, connect, in_words, is_web, patience
from multiseg.store.remote.write_back import SMALL_BYTES, WriteBack

READS_AT_ONCE = 64
"""Requests under way to an object store."""
PARTS_AT_ONCE = 4
"""Of an upload. More would run into the time limit of each on a slow line."""
FENCE_SECONDS = 30
"""How often a writer looks whether the store is still its own."""
STATES_AT_ONCE = 16
"""Cases that are committed together, over a network."""
STATES_SECONDS = 30
"""A case that was written is committed after this long, with the next one that is written."""


class RemoteStore(ZarrStore):  # type: ignore[misc]
    """The keys and values of a store behind a URL.

    A server that answers no range requests is read a whole object at a time. Whoever writes has to hold the
    store (`multiseg.store.remote.writer_lease`); a writer that has lost it, since its computer slept, is stopped. After
    `gather` its small objects are kept, and sent many at a time (`WriteBack`): a writer that dies loses some cases
    that it had written, whole, and the next one writes them again.
    """

    def __init__(self, url: str, read_only: bool, fence: Callable[[], None]) -> None:
        super().__init__(read_only=read_only)
        self.url = url
        self._fence = fence
        self._fenced_at = time.time()
        self._objects = connect(url)
        self._keys: ObjectStore[Any] = ObjectStore(self._objects, read_only=read_only)
        self._run = patience(url).run_async
        self._back: WriteBack | None = None
        self._num_states, self._states_since = 0, 0.0
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
        if self._back is not None and key in self._back:
            kept = self._back.get(key)
            return kept if kept is None or byte_range is None else kept[_part(byte_range, len(kept))]
        with in_words(self.url):
            async with self._turns:
                found = await self._run(lambda: self._get(key, prototype, byte_range))
        if self._back is not None and byte_range is None:
            self._back.keep(key, found)
            if found is None and key.endswith("/zarr.json") and key.count("/") == 1:  # no database of that name yet
                await self._meet(key.removesuffix("zarr.json"))
        return found

    async def _meet(self, prefix: str) -> None:
        """Whether anything is below a prefix is asked once, instead of for each object."""
        assert self._back is not None
        with in_words(self.url):
            found = await self._run(lambda: obstore.list_with_delimiter_async(self._objects, prefix))
        if not found["objects"] and not found["common_prefixes"]:
            self._back.keep_empty(prefix)

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
        if self._back is not None and key in self._back:
            return self._back.get(key) is not None
        with in_words(self.url):
            return await self._run(lambda: self._keys.exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        self._check_may_write()
        if self._back is None or len(value) > SMALL_BYTES:
            if self._back is not None:
                self._back.forget(key)
            await self._send(key, value)
            return
        self._back.write(key, default_buffer_prototype().buffer.from_bytes(value.to_bytes()))
        if "/status/c/" in key:
            self._states_since = self._states_since if self._num_states else time.monotonic()
            self._num_states += 1
            if self._num_states >= STATES_AT_ONCE or time.monotonic() - self._states_since >= STATES_SECONDS:
                await self.send()

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        self._check_may_write()
        if self._back is None:
            await self._send(key, None)
        else:
            self._back.write(key, None)

    async def delete_dir(self, prefix: str) -> None:
        if self._back is None:
            await super().delete_dir(prefix)
            return
        self._check_may_write()
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        there = [] if self._back.is_empty(prefix) else [key async for key in self._keys_below(prefix)]
        for key in {*there, *self._back.below(prefix)}:
            self._back.write(key, None)

    def gather(self) -> None:
        """From now on keep what is written until `sync_names`; in between cases are committed some at a time."""
        self._back = self._back or WriteBack()

    async def send(self) -> None:
        """Send all that was written; the states of the rows last."""
        if self._back is not None:
            self._check_may_write()
            await self._back.send(self._send)
            self._num_states = 0

    def sync_names(self) -> None:
        """Wait until the server has all that was written."""
        sync(self.send())

    async def _send(self, key: str, value: Buffer | None) -> None:
        async def request() -> None:
            if value is None:
                await self._keys.delete(key)
            else:
                await obstore.put_async(self._objects, key, value.as_buffer_like(), max_concurrency=PARTS_AT_ONCE)

        with in_words(self.url):
            async with self._turns:
                await self._run(request)

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
        await self.send()
        async for key in self._keys_below(prefix):
            yield key

    async def _keys_below(self, prefix: str) -> AsyncIterator[str]:
        with in_words(self.url):
            for key in await self._run(lambda: _all(self._keys.list_prefix(prefix))):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        await self.send()
        with in_words(self.url):
            for key in await self._run(lambda: _all(self._keys.list_dir(prefix))):
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


async def _all(keys: AsyncIterator[str]) -> Sequence[str]:
    return [key async for key in keys]


def _part(request: ByteRequest, size: int) -> slice:
    if isinstance(request, RangeByteRequest):
        return slice(request.start, request.end)
    if isinstance(request, OffsetByteRequest):
        return slice(request.offset, size)
    assert isinstance(request, SuffixByteRequest)
    return slice(max(0, size - request.suffix), size)
