"""Opening the Zarr hierarchy of a store by path or URL."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

from multiseg.errors import MultisegError, StoreError, UsageError
from multiseg.store.damage import UNREADABLE, damaged, not_readable, one_line
from multiseg.store.durable import DurableStore
from multiseg.store.guard import GuardedStore
from multiseg.store.schema import CONVERTED, FORMAT

ROOT_KEY = "multiseg"
NO_STORE = "NO_STORE"
"""The code of the error that says that nothing is there, as opposed to something wrong."""
OLD_FORMAT = "OLD_FORMAT"
"""The code of the error for a store that has to be converted first."""


def is_remote(url: str) -> bool:
    """Whether a store's name is a URL (s3://, gs://, https://) and no local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+]*://", url) is not None and not url.startswith("file://")


def local_path(url: str) -> Path:
    """The folder of a local store."""
    return Path(url.removeprefix("file://"))


def check_database_name(name: str) -> None:
    """Names become folders, parts of "DATABASE/CASE" and of file names, here and on other systems.

    Raises:
        UsageError: a database may not be called that.
    """
    if not re.fullmatch(r"[^\W_]([\w -]*\w)?", name):
        raise UsageError(
            f"a database cannot be called {name!r}. Use letters, digits, '-', '_' and single words or spaces "
            "between them, and begin with a letter or a digit."
        )


def is_plain_name(name: str) -> bool:
    """Whether a name can be printed, be part of a path, and be told from another at a glance."""
    return name.isprintable() and name == name.strip() and not re.search(r"[/\\]|^\.|^__|^$", name)


def zarr_store(url: str, read_only: bool) -> ZarrStore:
    """The key-value store behind a path or a URL; whoever writes to a remote one has to hold it."""
    if not is_remote(url):
        folder = local_path(url)
        return LocalStore(folder, read_only=True) if read_only else DurableStore(folder)
    from multiseg.store.remote.writer_lease import check_held  # heavy, and only remote stores need them
    from multiseg.store.remote.zarr_store import RemoteStore

    return RemoteStore(url, read_only, partial(check_held, url))


def open_root(url: str, mode: str, formats: Collection[int] = (FORMAT,)) -> zarr.Group:
    """The root group of an existing store of one of these formats.

    Raises:
        StoreError: there is no multiseg store, or one of another format.
        ResourceError: the place cannot be read or reached.
    """
    if not _is_there(url):
        raise StoreError(
            f"there is no store at {url}. Make one with: multiseg ingest DATA --store {url}", code=NO_STORE
        )
    was_there = False
    try:
        was_there = is_like_a_store(url)  # asked first: a writer may be making the store just now
        store = GuardedStore(zarr_store(url, read_only=mode == "r"), url)
        root = zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)
    except MultisegError:
        raise
    except PermissionError as error:
        raise not_readable(url, error) from error
    except UNREADABLE as error:
        if was_there:
            raise damaged(url, "the root", [("zarr.json", one_line(error))]) from error
        raise StoreError(
            f"{url} is no Zarr v3 store ({error}). Name a store's folder, or to make one, a folder that is not there.",
            code=NO_STORE,
        ) from error
    head = root.attrs.get(ROOT_KEY)
    if not isinstance(head, dict):
        if _has_databases(url):
            raise damaged(url, "the root", [("zarr.json", f"its attribute {ROOT_KEY!r} is {head!r}")])
        raise StoreError(f"{url} is a Zarr group but no multiseg store. Name another folder.")
    if head.get("format") not in formats:
        raise of_another_format(url, head.get("format"))
    return root


def is_like_a_store(url: str) -> bool:
    """Whether a path or URL is that of a store, sound or not, and of no folder of scans."""
    return is_remote(url) or (local_path(url) / "zarr.json").exists() or _has_databases(url)


def _has_databases(url: str) -> bool:
    return not is_remote(url) and any(local_path(url).glob("*/image/zarr.json"))


def check_head(url: str, head: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, float, float]]:
    """The databases that the root names, and the voxel size in mm.

    Raises:
        StoreError: the root says something else.
    """
    names, grid_mm = head.get("databases"), head.get("grid_mm")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise damaged(url, "the root", [("zarr.json", f"it names no databases ({names!r})")])
    try:
        i, j, k = (float(mm) for mm in grid_mm or ())
    except (TypeError, ValueError):
        i = j = k = 0.0
    if not all(0 < mm < inf for mm in (i, j, k)):
        raise damaged(url, "the root", [("zarr.json", f"the voxel size {grid_mm!r} is none")])
    return tuple(names), (i, j, k)


def _is_there(url: str) -> bool:
    """Whether there is a folder, or on a server, which knows no folders, a Zarr hierarchy."""
    if is_remote(url):
        from multiseg.store.remote.connection import read_small

        return read_small(url, "zarr.json") is not None
    try:
        return local_path(url).is_dir()
    except PermissionError as error:
        raise not_readable(url, error) from error


def of_another_format(url: str, held: object) -> StoreError:
    """The error for a store whose root says this in the place of our format's number."""
    if type(held) is not int:
        return damaged(url, "the root", [("zarr.json", f"the store format {held!r} is none")])
    if held > FORMAT:
        return StoreError(
            f"{url} has store format {held}; this multiseg reads format {FORMAT}. Update multiseg. If no newer one "
            f"ever wrote to it, its zarr.json is damaged: move that file away, then run: multiseg repair {url}."
        )
    said = f"{url} was made by an older multiseg: it has store format {held}, and this one reads format {FORMAT}."
    if held == CONVERTED:
        more = f"Convert it in its place, with nothing ingested again: multiseg upgrade {url}"
        return StoreError(f"{said} {more}", code=OLD_FORMAT)
    return StoreError(
        f"{said} Ingest the scans again, into a new store. If this one has ever read it, its zarr.json is damaged: "
        f"multiseg repair {url}."
    )


def database_names(root: zarr.Group) -> list[str]:
    """The databases of a store in the order they came into it.

    Raises:
        StoreError: the root names none.
    """
    return list(check_head(str(root.store), root.attrs[ROOT_KEY])[0])
