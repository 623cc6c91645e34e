"""A local store that survives a power failure at any moment."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from multiseg.flushing import flush, flush_folders, make_folder
from multiseg.lease import check_mine
from multiseg.locks import WRITER, FolderPlace


class FolderStore(LocalStore):  # type: ignore[misc]
    """A folder whose small files are read without Zarr's objects for their paths, which cost more than the reading."""

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if byte_range is not None:
            return super().get_sync(key, prototype=prototype, byte_range=byte_range)
        self._ensure_open_sync()
        try:
            with open(f"{self.root}/{key}", "rb", buffering=0) as file:  # noqa: PTH123 (no path is made)
                return (prototype or default_buffer_prototype()).buffer.from_bytes(file.read())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


class DurableStore(FolderStore):
    """A folder that Zarr writes to. A file's content is on the disk before the file gets its name.

    File names reach the disk later and in any order, except around the files that others depend on: the metadata of a
    group or an array (zarr.json), the states of the rows, which commit a case, and their revisions, which mark a row
    that is being changed. All names are flushed before and after each of these. So after a power failure every file
    that has a name is complete, and every committed case is whole.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._place = FolderPlace(self.root / WRITER)
        self._has_lock_file = self._place.look() is not None
        self._changed: set[Path] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.root, self.read_only)

    async def set(self, key: str, value: Buffer) -> None:
        if not self._is_open:
            await self._open()
        await asyncio.to_thread(self.set_sync, key, value)

    # No race between its two steps: only the one writer that holds the store's lock writes to it.
    set_if_not_exists = ZarrStore.set_if_not_exists

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

    def _note(self, folders: Iterable[Path]) -> None:
        with self._lock:
            self._changed.update(folders)

    def _write(self, key: str, value: Buffer) -> None:
        path = self.root / key
        is_depended_on = path.name == "zarr.json" or "/status/c/" in key or "/revision/c/" in key
        if is_depended_on:
            if self._has_lock_file:
                check_mine(self._place.name, self._place.look())
            self.sync_names()
        folders = make_folder(path.parent)
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                file.write(value.as_buffer_like())
                file.flush()
                flush(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):  # the folder itself may be the problem
                partial.unlink()
            raise
        self._note({path.parent, *folders})
        if is_depended_on:
            self.sync_names()


def _reopened(root: Path, read_only: bool) -> DurableStore:
    return DurableStore(root, read_only=read_only)


def gather(group: zarr.Group) -> None:
    """Let a remote group's store buffer small objects. The caller must call `sync_names` at the end, and wherever the
    order of writes matters."""
    _call_if_there(group, "gather")


def sync_names(group: zarr.Group) -> None:
    """Wait until everything written through a group is on the disk, or on the server."""
    _call_if_there(group, "sync_names")


def _call_if_there(group: zarr.Group, method: str) -> None:
    store = group.store_path.store
    getattr(getattr(store, "inner", store), method, lambda: None)()  # a guarded store wraps another
