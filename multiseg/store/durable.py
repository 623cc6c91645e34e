"""A local store that survives the loss of power at any moment."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from multiseg.flushing import flush, flush_folders, make_folder
from multiseg.lease import check_mine
from multiseg.locks import WRITER, FolderPlace


class DurableStore(LocalStore):  # type: ignore[misc]
    """A folder as Zarr writes to it: every file's content is on the disk before the file has its name.

    Names reach the disk later and in any order, but all of them before and after a file that others build on: the
    metadata of a group or an array (zarr.json), the states of the rows, which commit a case, and their revisions, which
    say that one is being changed. So after a loss of power whatever is named is there, and a case that was committed is
    whole.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._hold = FolderPlace(self.root / WRITER, str(root))
        self._is_held_by_file = self._hold.look() is not None
        self._changed: set[Path] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.root, self.read_only)

    async def set(self, key: str, value: Buffer) -> None:
        await self._ready()
        await asyncio.to_thread(self._write, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # Only the one writer that holds the store writes to it, so that nobody comes between.
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        self._write(key, value)

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self._note({(self.root / key).parent})

    async def delete_dir(self, prefix: str) -> None:
        await super().delete_dir(prefix)
        self._note({(self.root / prefix).parent})

    def sync_names(self) -> None:
        """Wait until the name of every file that was written or deleted is on the disk."""
        with self._lock:
            flush_folders(self._changed)
            self._changed.clear()

    async def _ready(self) -> None:
        if not self._is_open:
            await self._open()
        self._check_writable()

    def _note(self, folders: Iterable[Path]) -> None:
        with self._lock:
            self._changed.update(folders)

    def _write(self, key: str, value: Buffer) -> None:
        path = self.root / key
        others_build_on_it = path.name == "zarr.json" or "/status/c/" in key or "/revision/c/" in key
        if others_build_on_it:
            if self._is_held_by_file:
                check_mine(self._hold.name, self._hold.look())
            self.sync_names()
        folders = make_folder(path.parent)
        beside = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with beside.open("wb") as file:
                file.write(value.as_buffer_like())
                file.flush()
                flush(file.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(OSError):  # the folder itself may be the trouble
                beside.unlink()
            raise
        self._note({path.parent, *folders})
        if others_build_on_it:
            self.sync_names()


def _again(root: Path, read_only: bool) -> DurableStore:
    return DurableStore(root, read_only=read_only)


@runtime_checkable
class Syncing(Protocol):
    """A store that has what is written at once, but keeps it only later."""

    def sync_names(self) -> None:
        """Wait until everything that was written is kept."""


@runtime_checkable
class Gathering(Protocol):
    """A store that can keep small objects, to send them together."""

    def gather(self) -> None:
        """From now on keep what is written until it is synced."""


def gather(group: zarr.Group) -> None:
    """Let a group's store send what is written together, if it is far away. Whoever calls this calls `sync_names`
    later, and wherever the order matters."""
    store = getattr(group.store_path.store, "inner", group.store_path.store)
    if isinstance(store, Gathering):
        store.gather()


def sync_names(group: zarr.Group) -> None:
    """Wait until all that was written through a group is on the disk, or at the server."""
    store = group.store_path.store
    store = getattr(store, "inner", store)  # which a guarded one has
    if isinstance(store, Syncing):
        store.sync_names()
