"""Opening the Zarr hierarchy of a store by path or URL."""

from __future__ import annotations

import re
from pathlib import Path

import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore, ObjectStore

from multiseg.errors import StoreError
from multiseg.store.schema import FORMAT

ROOT_KEY = "multiseg"


def is_remote(url: str) -> bool:
    """Whether a store's name is a URL (s3://, gs://, https://) and no local path."""
    return re.match(r"[a-z][a-z0-9+]*://", url) is not None and not url.startswith("file://")


def zarr_store(url: str, read_only: bool) -> ZarrStore:
    """The key-value store behind a path or a URL; remote ones go through obstore."""
    if not is_remote(url):
        return LocalStore(Path(url.removeprefix("file://")), read_only=read_only)
    from obstore.store import from_url  # heavy, and only remote stores need it

    return ObjectStore(from_url(url), read_only=read_only)


def open_root(url: str, mode: str) -> zarr.Group:
    """The root group of an existing store.

    Raises:
        StoreError: there is no multiseg store, or one of another format.
    """
    if not is_remote(url) and not Path(url.removeprefix("file://")).is_dir():
        raise StoreError(f"there is no store at {url}. Make one with: multiseg ingest DATA --store {url}")
    try:
        root = zarr.open_group(zarr_store(url, read_only=mode == "r"), mode=mode, zarr_format=3, use_consolidated=False)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise StoreError(f"{url} is no Zarr v3 store ({error}). Make one with: multiseg ingest.") from error
    head = root.attrs.get(ROOT_KEY)
    if not isinstance(head, dict):
        raise StoreError(f"{url} is a Zarr group but no multiseg store. Make one with: multiseg ingest.")
    if head.get("format") != FORMAT:
        raise StoreError(f"{url} has store format {head.get('format')}; this multiseg reads format {FORMAT}.")
    return root
