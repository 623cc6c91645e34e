"""Making a store, holding it for one writer, and what a database must agree on to take more cases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zarr

from multiseg import locks
from multiseg.errors import ResourceError, StoreError, UsageError
from multiseg.faults import remedy
from multiseg.files import STORE_MARK, check_folder, files_below
from multiseg.labels import LabelSchema
from multiseg.lease import InUseError
from multiseg.store import schema
from multiseg.store.guard import GuardedStore
from multiseg.store.hierarchy import NO_STORE, ROOT_KEY, check_head, is_remote, local_path, open_root, zarr_store
from multiseg.store.preparation.recipe import Recipe


@dataclass(frozen=True)
class DatabaseInfo:
    """What is said once for a whole database.

    Raises:
        UsageError: there is no such codec.
    """

    name: str
    pathology: str
    recipe: Recipe
    schemas: Mapping[str, LabelSchema]
    codec: str = "lz4"
    licence: str = ""
    citation: str = ""
    source: str = ""
    pseudonyms: str = ""

    def __post_init__(self) -> None:
        if self.codec not in schema.CODECS:
            raise UsageError(f"codec {self.codec!r} is none of {', '.join(schema.CODECS)}.")

    def to_attributes(self) -> dict[str, Any]:
        return {
            "pathology": self.pathology,
            "label_schemas": {name: labels.to_json() for name, labels in self.schemas.items()},
            "recipe": self.recipe.to_json(),
            "codec": self.codec,
            "licence": self.licence,
            "citation": self.citation,
            "source": self.source,
            "pseudonyms": self.pseudonyms,
        }


def check_place(url: str) -> None:
    """Whether a store lies where stores can be written; the rehearsal of a change asks it, too.

    Raises:
        ResourceError: it lies behind a plain web server.
    """
    if is_remote(url):
        from multiseg.store.remote.writer_lease import check_not_web  # heavy, and only remote stores need it

        check_not_web(url)


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold a store for one writer; a local one's lock ends with the process, however it ends.

    Raises:
        ResourceError: another process is writing to it, or the place cannot be written.
        UsageError: it lies in another store, or a file is in its place.
    """
    if is_remote(url):
        from multiseg.store.remote.writer_lease import hold  # heavy, and only remote stores need it

        with hold(url):
            yield
        return
    path = local_path(url)
    if not os.path.exists(path / STORE_MARK):  # noqa: PTH110 (Path.exists raises where the folder may not be read)
        check_folder(path, own=("*",))  # what else is there is said below
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ResourceError(f"{url} cannot be a store's folder: {error.strerror}. Name another place.") from error
    try:
        with _held_alone(url, path, handle):
            try:
                yield
            finally:
                if path.is_dir() and not any(map(_is_kept, path.iterdir())):
                    shutil.rmtree(path)  # with the lock file, if that is there
    finally:
        os.close(handle)


@contextmanager
def _held_alone(url: str, path: Path, handle: int) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(locks.locked(handle, path, wait=False))
            # Whoever held the lock before may have taken the empty folder away: then this lock holds nothing.
            is_held = os.path.samestat(os.fstat(handle), path.stat())
        except InUseError:
            raise
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        except OSError as error:
            raise ResourceError(
                f"{url} cannot be locked: {error.strerror}. {remedy(error, 'Check the disk.')}"
            ) from error
        if not is_held:
            raise ResourceError(f"another process is writing to {url}. Wait for it, then run again.")
        yield


def existing_root(url: str, mode: str, spacing_mm: tuple[float, float, float]) -> zarr.Group | None:
    """The root group of a store that is to take voxels of this size; None when there is no store yet.

    Raises:
        StoreError: the store has another voxel size, or something else lies there.
    """
    if not is_remote(url) and not (local_path(url).is_dir() and any(map(_is_kept, local_path(url).iterdir()))):
        return None
    try:
        root = open_root(url, mode)
    except StoreError as error:
        if is_remote(url) and error.code == NO_STORE:
            return None
        raise
    _names, grid = check_head(url, root.attrs[ROOT_KEY])
    if grid != spacing_mm:
        raise StoreError(
            f"{url} holds voxels of {list(grid)} mm, but {list(spacing_mm)} mm were asked for. "
            "One store keeps one voxel size: use its own, or another store."
        )
    return root


def open_or_create_root(url: str, spacing_mm: tuple[float, float, float]) -> zarr.Group:
    """The root group for writing, made when it is not there.

    Raises:
        StoreError: the store has another voxel size, or something else lies there.
    """
    if not is_remote(url):
        for left in _left_by_the_dead(local_path(url)):
            left.unlink()
    root = existing_root(url, "r+", spacing_mm)
    if root is not None:
        return root
    head = {
        "format": schema.FORMAT,
        "created_by": f"multiseg {version('multiseg')}",
        "grid_mm": list(spacing_mm),
        "databases": [],
    }
    store = GuardedStore(zarr_store(url, read_only=False), url)
    return zarr.create_group(store, zarr_format=3, attributes={ROOT_KEY: head})


def _left_by_the_dead(folder: Path) -> list[Path]:
    """The files beside, of a writer that died: those of a store, or all that is there where it died at once."""
    left = [Path(file.path) for file in files_below(folder) if file.name.endswith(".partial")]
    is_ours = (folder / STORE_MARK).exists() or len(left) == sum(map(_is_kept, folder.rglob("*")))
    return left if is_ours else []


def _is_kept(path: Path) -> bool:
    """Whether this is something other than the lock file."""
    return not path.name.startswith(locks.WRITER)


def check_agreement(held: Mapping[str, Any], info: DatabaseInfo) -> None:
    """Whether a database with the attributes `held` can take cases that are prepared as `info` says.

    Raises:
        StoreError: it has another recipe, codec, meaning of codes or key of pseudonyms.
    """
    asked = info.to_attributes()
    if held.get("pseudonyms", "") != info.pseudonyms:
        real, other = "its cases have their real names", "its cases are named by the key of another file of pseudonyms"
        there = (
            other
            if held.get("pseudonyms") and info.pseudonyms
            else real
            if info.pseudonyms
            else ("its cases have pseudonyms")
        )
        raise StoreError(
            f"database {info.name!r}: {there}. Ingest it as before (--pseudonyms FILE, with the same file), or give "
            "the database another name."
        )
    for key in ("recipe", "codec"):
        there, now = (_without_landmarks(attributes[key]) for attributes in (held, asked))
        if there != now:
            raise StoreError(
                f"database {info.name!r} was ingested with {key} {there}, but {now} was asked for. "
                "Ask for the same, or give the database another name."
            )
    for name, labels in asked["label_schemas"].items():
        if held["label_schemas"].get(name, labels) != labels:
            raise StoreError(
                f"database {info.name!r} already has an annotation {name!r} with other codes: "
                f"{held['label_schemas'][name]}. Give the same codes, or name the annotation otherwise."
            )


def _without_landmarks(said: Any) -> Any:
    """A recipe grows a scale with each new sequence; that is no other recipe."""
    return {key: value for key, value in said.items() if key != "landmarks"} if isinstance(said, Mapping) else said
