"""Reading and writing a store's files by key, without relying on its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from multiseg.store.durable import DurableStore
from multiseg.store.hierarchy import is_remote, local_path, zarr_store

ASIDE = ".multiseg-damaged"
"""The suffix of the folder beside a store that keeps the replaced damaged files."""


class Rehearsal(WrapperStore[ZarrStore]):  # type: ignore[misc]
    """A store that keeps all writes in memory and never changes the disk, for dry runs."""

    def __init__(self, store: ZarrStore, written: dict[str, Buffer | None] | None = None) -> None:
        super().__init__(store)
        self._written: dict[str, Buffer | None] = {} if written is None else written

    def _with_store(self, store: ZarrStore) -> Rehearsal:
        return Rehearsal(store, self._written)

    @property
    def read_only(self) -> bool:
        return False

    def _check_writable(self) -> None:
        pass

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key in self._written:
            return self._written[key]
        value: Buffer | None = await self._store.get(key, prototype, byte_range)
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return self._written[key] is not None if key in self._written else bool(await self._store.exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        self._written[key] = value

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        self._written[key] = None

    async def delete_dir(self, prefix: str) -> None:
        async for key in self._store.list_prefix(prefix.rstrip("/") + "/"):
            self._written[key] = None


class Place:
    """The files of a store. With `is_rehearsal`, nothing changes on the disk."""

    def __init__(self, url: str, is_rehearsal: bool) -> None:
        self.url, self.is_rehearsal = url, is_rehearsal
        store = zarr_store(url, read_only=is_rehearsal)
        self.store: ZarrStore = Rehearsal(store) if is_rehearsal else store
        self._started = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")

    def read(self, key: str) -> bytes | None:
        data = sync(self.store.get(key, default_buffer_prototype()))
        return None if data is None else bytes(data.to_bytes())

    def json(self, key: str) -> dict[str, Any] | None:
        """The JSON object in a file; None if there is none."""
        try:
            value = json.loads(self.read(key) or b"")
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def write(self, key: str, data: bytes) -> None:
        sync(self.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def delete_folder(self, prefix: str) -> None:
        sync(self.store.delete_dir(prefix))

    def names(self, prefix: str) -> list[str]:
        """The names in a folder."""

        async def listed() -> list[str]:
            return [name.rstrip("/") async for name in self.store.list_dir(prefix)]

        return sorted(name for name in sync(listed()) if name)

    def keys(self, prefix: str) -> list[str]:
        """The keys of all files in a folder and its subfolders."""

        async def listed() -> list[str]:
            return [key async for key in self.store.list_prefix(prefix.rstrip("/") + "/")]

        return sorted(sync(listed()))

    def replace(self, key: str, data: bytes) -> None:
        """Replace a damaged file. A copy of it is kept beside the store."""
        self.set_aside(key)
        self.write(key, data)

    def set_aside(self, key: str) -> None:
        """Copy a file to the folder beside the store."""
        data = self.read(key)
        if data and not self.is_rehearsal:
            aside = aside_of(self.url)
            sync(aside.set(f"{self._started}/{key}", default_buffer_prototype().buffer.from_bytes(data)))

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        if isinstance(self.store, DurableStore):
            self.store.sync_names()


def aside_url(url: str) -> str:
    """The folder beside a store that keeps its damaged files. Inside the store it would disturb other programs."""
    return url.rstrip("/") + ASIDE


def aside_of(url: str) -> ZarrStore:
    """Open that folder for writing; the caller must hold the store's lock."""
    if not is_remote(url):
        return DurableStore(local_path(aside_url(url)))
    from multiseg.store.remote.writer_lease import check_held  # heavy, and only remote stores need them
    from multiseg.store.remote.zarr_store import RemoteStore

    return RemoteStore(aside_url(url), False, partial(check_held, url))
