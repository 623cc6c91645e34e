"""Opening the Zarr hierarchy of a store by path or URL."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.group import AsyncGroup, GroupMetadata
from zarr.core.sync import sync
from zarr.storage import LocalStore, StorePath

from multiseg.errors import MultisegError, StoreError, UsageError
from multiseg.store.damage import UNREADABLE, damaged, not_readable, one_line
from multiseg.store.durable import DurableStore, FolderStore
from multiseg.store.guard import GuardedStore
from multiseg.store.schema import CONVERTED, FORMAT

ROOT_KEY = "multiseg"
NO_STORE = "NO_STORE"
"""The code of the error for a missing store, as opposed to a damaged one."""
REQUESTS_AT_ONCE = 16
"""Parallel requests: a database has about 25 coordinates, and each answer of a server takes time."""
OLD_FORMAT = "OLD_FORMAT"
"""The code of the error for a store that must be converted first."""


def is_remote(url: str) -> bool:
    """Whether a store's name is a URL (s3://, gs://, https://) and not a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+]*://", url) is not None and not url.startswith("file://")


def local_path(url: str) -> Path:
    """The folder of a local store."""
    return Path(url.removeprefix("file://"))


def check_database_name(name: str) -> None:
    """Check that a name can be a folder and a part of "DATABASE/CASE" and of file names on any system.

    Raises:
        UsageError: it cannot.
    """
    if not re.fullmatch(r"[^\W_]([\w -]*\w)?", name):
        raise UsageError(
            f"a database cannot be called {name!r}. Use letters, digits, '-', '_' and spaces, and begin with a letter "
            "or a digit."
        )


def is_plain_name(name: str) -> bool:
    """Whether a name can be printed, can be part of a path, and has no spaces around it."""
    return name.isprintable() and name == name.strip() and not re.search(r"[/\\]|^\.|^__|^$", name)


def zarr_store(url: str, read_only: bool, leased: str = "") -> ZarrStore:
    """The key-value store at a path or URL.

    Args:
        leased: the remote store whose lease a process must hold to write; by default this one.
    """
    if not is_remote(url):
        folder = local_path(url)
        return FolderStore(folder, read_only=True) if read_only else DurableStore(folder)
    from multiseg.store.remote.writer_lease import check_held  # heavy, and only remote stores need them
    from multiseg.store.remote.zarr_store import RemoteStore

    return RemoteStore(url, read_only, partial(check_held, leased or url))


def open_group(store: Any, path: str = "") -> zarr.Group:
    """A group of a store, or the one at a `StorePath`; its metadata are read from its own zarr.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no group.
    """
    place = store / path if isinstance(store, StorePath) else StorePath(store, path)
    text = read_object(place.store, f"{place.path}/zarr.json".lstrip("/"))
    if text is None:
        raise FileNotFoundError(f"there is no group at {place}")
    metadata = json.loads(text)
    if metadata.get("node_type") != "group" or metadata.get("zarr_format") != 3:
        kind, version = metadata.get("node_type"), metadata.get("zarr_format")
        raise ValueError(f"it describes a Zarr {kind} of format {version}, not a group of format 3")
    metadata.pop("consolidated_metadata", None)
    return zarr.Group(AsyncGroup(GroupMetadata.from_dict(metadata), place))


def read_object(store: ZarrStore, key: str, part: ByteRequest | None = None) -> bytes | None:
    """The bytes of an object, or of a part of it; None if it does not exist."""
    prototype = default_buffer_prototype()
    if is_folder(store):
        data = store.get_sync(key, prototype=prototype, byte_range=part)
    else:
        data = sync(store.get(key, prototype, part))
    return None if data is None else bytes(data.to_bytes())


def read_objects(store: ZarrStore, keys: Sequence[str]) -> list[bytes | None]:
    """The bytes of objects; None for those that do not exist."""
    prototype = default_buffer_prototype()
    if is_folder(store):
        found = [store.get_sync(key, prototype=prototype) for key in keys]
    else:
        found = _at_once([partial(store.get, key, prototype) for key in keys])
    return [None if data is None else bytes(data.to_bytes()) for data in found]


def write_object(store: ZarrStore, key: str, data: bytes) -> None:
    """Write an object of a store."""
    write_objects(store, {key: data})


def write_objects(store: ZarrStore, objects: Mapping[str, bytes]) -> None:
    """Write objects of a store, in any order."""
    buffers = {key: default_buffer_prototype().buffer.from_bytes(data) for key, data in objects.items()}
    if is_folder(store):
        for key, buffer in buffers.items():
            store.set_sync(key, buffer)
    else:
        _at_once([partial(store.set, key, buffer) for key, buffer in buffers.items()])


def is_folder(store: ZarrStore) -> bool:
    """Whether a store is a folder on this computer: its small files are read and written directly, since the turns of
    Zarr's event loop would cost more."""
    return isinstance(getattr(store, "innermost", store), LocalStore)


def _at_once(requests: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """The results of requests, sent together from Zarr's own thread: a thread for each would mostly wait for it.

    If several fail, the error of the first in order is raised.
    """

    async def gathered() -> list[Any]:
        limit = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def limited(request: Callable[[], Awaitable[Any]]) -> Any:
            async with limit:
                return await request()

        return await asyncio.gather(*map(limited, requests), return_exceptions=True)

    results: list[Any] = sync(gathered())
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def collect(names: AsyncIterator[str]) -> list[str]:
    """The names of a listing of a store, without the slashes at their ends, sorted."""

    async def all_names() -> list[str]:
        return [name.rstrip("/") async for name in names]

    return sorted(filter(None, sync(all_names())))


def open_root(url: str, mode: str, formats: Collection[int] = (FORMAT,)) -> zarr.Group:
    """The root group of an existing store in one of these formats.

    Raises:
        StoreError: there is no multiseg store, it is damaged, or it has another format.
        ResourceError: it cannot be read or reached.
    """
    if not _exists(url):
        message = f"there is no store at {url}. Make one with: multiseg ingest DATA --store {url}"
        raise StoreError(message, code=NO_STORE)
    was_like_a_store = False
    try:
        was_like_a_store = is_like_a_store(url)  # checked first: a writer may be creating the store right now
        root = open_group(GuardedStore(zarr_store(url, read_only=mode == "r"), url))
    except MultisegError:
        raise
    except PermissionError as error:
        raise not_readable(url, error) from error
    except UNREADABLE as error:
        if was_like_a_store:
            raise damaged(url, "the root", [("zarr.json", one_line(error))]) from error
        message = f"{url} is not a Zarr v3 store ({error}). Name a store's folder or, to create a store, a new folder."
        raise StoreError(message, code=NO_STORE) from error
    head = root.attrs.get(ROOT_KEY)
    if not isinstance(head, dict):
        if _has_databases(url):
            raise damaged(url, "the root", [("zarr.json", f"its attribute {ROOT_KEY!r} is {head!r}")])
        raise StoreError(f"{url} is a Zarr group but not a multiseg store. Name another folder.")
    if head.get("format") not in formats:
        raise of_another_format(url, head.get("format"))
    return root


def is_like_a_store(url: str) -> bool:
    """Whether a path or URL may be a store, even a damaged one, and not a folder of scans."""
    return is_remote(url) or (local_path(url) / "zarr.json").exists() or _has_databases(url)


def _has_databases(url: str) -> bool:
    return not is_remote(url) and any(local_path(url).glob("*/image/zarr.json"))


def check_head(url: str, head: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, float, float]]:
    """The names of the databases and the voxel size in mm, from the root's attributes.

    Raises:
        StoreError: they are missing or invalid.
    """
    names, grid_mm = head.get("databases"), head.get("grid_mm")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise damaged(url, "the root", [("zarr.json", f"its list of databases is {names!r}")])
    try:
        i, j, k = (float(mm) for mm in grid_mm or ())
    except (TypeError, ValueError):
        i = j = k = 0.0
    if not all(0 < mm < inf for mm in (i, j, k)):
        raise damaged(url, "the root", [("zarr.json", f"its voxel size is {grid_mm!r}")])
    return tuple(names), (i, j, k)


def _exists(url: str) -> bool:
    """Whether a local folder exists; on a server, which has no folders, whether a Zarr hierarchy exists."""
    if is_remote(url):
        from multiseg.store.remote.connection import read_small

        return read_small(url, "zarr.json") is not None
    try:
        return local_path(url).is_dir()
    except PermissionError as error:
        raise not_readable(url, error) from error


def of_another_format(url: str, number: object) -> StoreError:
    """The error for a store whose root has this value as its format."""
    if type(number) is not int:
        return damaged(url, "the root", [("zarr.json", f"its store format is {number!r}")])
    if number > FORMAT:
        return StoreError(
            f"{url} has store format {number}; this multiseg reads format {FORMAT}. Update multiseg. If no newer "
            f"one ever wrote to it, its zarr.json is damaged: move that file away, then run: multiseg repair {url}."
        )
    message = f"{url} was made by an older multiseg: it has store format {number}, and this one reads format {FORMAT}."
    if number == CONVERTED:
        advice = f"Convert it in place, without ingesting anything again: multiseg upgrade {url}"
        return StoreError(f"{message} {advice}", code=OLD_FORMAT)
    return StoreError(
        f"{message} Ingest the scans again, into a new store. If this multiseg could read it before, its zarr.json is "
        f"damaged; repair it with: multiseg repair {url}."
    )


def database_names(root: zarr.Group) -> list[str]:
    """The databases of a store in the order in which they were added.

    Raises:
        StoreError: the root's attributes are invalid.
    """
    return list(check_head(str(root.store), root.attrs[ROOT_KEY])[0])
