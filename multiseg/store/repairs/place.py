"""Reading and writing a store's files by key, without relying on its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from multiseg.store.durable import DurableStore
from multiseg.store.guard import GuardedStore
from multiseg.store.hierarchy import collect, read_object, write_object, zarr_store

ASIDE = ".multiseg-damaged"
"""The suffix of the folder beside a store that keeps the replaced damaged files."""


@dataclass(frozen=True)
class Repaired:
    """A damaged file, and what was written to replace it."""

    file: str
    what: str


@dataclass(frozen=True)
class Lost:
    """A case that must be ingested again; if `case` is "", a whole database."""

    database: str
    case: str
    file: str
    why: str


@dataclass
class Log:
    """Collects both during a repair."""

    files: list[Repaired] = field(default_factory=list)
    cases: list[Lost] = field(default_factory=list)

    def repaired(self, file: str, what: str) -> None:
        self.files.append(Repaired(file, what))

    def lost(self, database: str, case: str, file: str, why: str) -> None:
        self.cases.append(Lost(database, case, file, why))


class Rehearsal(WrapperStore[ZarrStore]):  # type: ignore[misc]
    """A store that keeps all writes in memory and never changes the disk, for dry runs."""

    read_only = False

    def __init__(self, store: ZarrStore, written: dict[str, Buffer | None] | None = None) -> None:
        super().__init__(store)
        self._written: dict[str, Buffer | None] = {} if written is None else written

    def _with_store(self, store: ZarrStore) -> Rehearsal:
        return Rehearsal(store, self._written)

    def _check_writable(self) -> None:
        pass

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key in self._written:
            return self._written[key]
        value: Buffer | None = await self._store.get(key, prototype, byte_range)
        return value

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key in self._written:
            return self._written[key]
        value: Buffer | None = self._store.get_sync(key, prototype=prototype, byte_range=byte_range)
        return value

    @property
    def innermost(self) -> ZarrStore:
        """The store that has the objects."""
        return self._store

    get_partial_values = GuardedStore.get_partial_values  # by `get`

    async def exists(self, key: str) -> bool:
        return self._written[key] is not None if key in self._written else bool(await self._store.exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        self._written[key] = value

    def set_sync(self, key: str, value: Buffer) -> None:
        self._written[key] = value

    set_if_not_exists = ZarrStore.set_if_not_exists  # by `exists` and `set`

    async def delete(self, key: str) -> None:
        self._written[key] = None

    async def delete_dir(self, prefix: str) -> None:
        async for key in self._store.list_prefix(prefix.rstrip("/") + "/"):
            self._written[key] = None


class Place:
    """The files of a store, and the log of their repair. With `is_rehearsal`, nothing changes on the disk."""

    def __init__(self, url: str, is_rehearsal: bool) -> None:
        self.url, self.is_rehearsal, self.log = url, is_rehearsal, Log()
        store = zarr_store(url, read_only=is_rehearsal)
        self.store: ZarrStore = Rehearsal(store) if is_rehearsal else store
        self._started = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")

    def read(self, key: str) -> bytes | None:
        return read_object(self.store, key)

    def json(self, key: str) -> dict[str, Any] | None:
        """The JSON object in a file; None if there is none."""
        try:
            value = json.loads(self.read(key) or b"")
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def delete_folder(self, prefix: str) -> None:
        sync(self.store.delete_dir(prefix))

    def names(self, prefix: str) -> list[str]:
        """The names in a folder."""
        return collect(self.store.list_dir(prefix))

    def keys(self, prefix: str) -> list[str]:
        """The keys of all files in a folder and its subfolders."""
        return collect(self.store.list_prefix(prefix.rstrip("/") + "/"))

    def replace(self, key: str, data: bytes, what: str) -> None:
        """Replace a damaged file, and log `what` was written. A copy of the file is kept beside the store."""
        self.set_aside(key)
        write_object(self.store, key, data)
        self.log.repaired(key, what)

    def set_aside(self, key: str) -> None:
        """Copy a file to the folder beside the store."""
        data = self.read(key)
        if data and not self.is_rehearsal:
            write_object(aside_of(self.url), f"{self._started}/{key}", data)

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        if isinstance(self.store, DurableStore):
            self.store.sync_names()


def json_bytes(metadata: Mapping[str, Any]) -> bytes:
    """The content of a zarr.json."""
    return json.dumps(metadata, indent=2).encode()


def aside_url(url: str) -> str:
    """The folder beside a store that keeps its damaged files. Inside the store it would disturb other programs."""
    return url.rstrip("/") + ASIDE


def aside_of(url: str) -> ZarrStore:
    """Open that folder for writing; the caller must hold the store's lock."""
    return zarr_store(aside_url(url), read_only=False, leased=url)
