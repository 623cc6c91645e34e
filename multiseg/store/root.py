"""Creating a store, locking it for one writer, and checking that a database can take more cases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from multiseg.store.preparation.template import Template


@dataclass(frozen=True)
class DatabaseInfo:
    """The settings of a whole database.

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
    template: Template | None = None

    def __post_init__(self) -> None:
        if self.codec not in schema.CODECS:
            raise UsageError(f"codec {self.codec!r} is not one of {', '.join(schema.CODECS)}.")

    def to_attributes(self) -> dict[str, Any]:
        """All attributes but the template, which is written once its coordinates exist."""
        return {
            "pathology": self.pathology,
            "label_schemas": {name: labels.to_json() for name, labels in self.schemas.items()},
            "recipe": self.recipe.to_json(),
            **{name: getattr(self, name) for name in ("codec", "licence", "citation", "source", "pseudonyms")},
        }


def check_place(url: str) -> None:
    """Check that a store's place can be written at all. Dry runs check it, too.

    Raises:
        ResourceError: it is behind a plain web server.
    """
    if is_remote(url):
        from multiseg.store.remote.writer_lease import check_not_web  # heavy, and only remote stores need it

        check_not_web(url)


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Lock a store for one writer. The lock of a local store ends with the process, however it ends.

    Raises:
        ResourceError: another process is writing to it, or the place cannot be written.
        UsageError: it is inside another store, or a file is in its place.
    """
    if is_remote(url):
        from multiseg.store.remote.writer_lease import hold  # heavy, and only remote stores need it

        with hold(url):
            yield
        return
    path = local_path(url)
    if not os.path.exists(path / STORE_MARK):  # noqa: PTH110 (Path.exists raises where the folder may not be read)
        check_folder(path, own=("*",))  # existing_root checks what else is in the folder
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        message = f"cannot use {url} as the folder of a store: {error.strerror}. Name another folder."
        raise ResourceError(message) from error
    try:
        with _exclusive_lock(url, path, handle):
            try:
                yield
            finally:
                if path.is_dir() and not any(map(_is_not_lock, path.iterdir())):
                    shutil.rmtree(path)  # with the lock file, if there is one
    finally:
        os.close(handle)


@contextmanager
def _exclusive_lock(url: str, path: Path, handle: int) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(handle, path, wait=False))
            # The previous holder may have removed the empty folder: then this lock is on a deleted folder.
            is_held = os.path.samestat(os.fstat(handle), path.stat())
        except InUseError:
            raise
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        except OSError as error:
            raise ResourceError(f"cannot lock {url}: {error.strerror}. {remedy(error, 'Check the disk.')}") from error
        if not is_held:
            raise ResourceError(f"another process is writing to {url}. Wait for it, then run again.")
        yield


def existing_root(url: str, mode: str, spacing_mm: tuple[float, float, float]) -> zarr.Group | None:
    """The root group of a store for voxels of this size; None if there is no store yet.

    Raises:
        StoreError: the store has another voxel size, or the folder holds something else.
    """
    if not is_remote(url) and not (local_path(url).is_dir() and any(map(_is_not_lock, local_path(url).iterdir()))):
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
            f"{url} has voxels of {list(grid)} mm, but {list(spacing_mm)} mm were asked for. "
            "A store has one voxel size: use it, or make another store."
        )
    return root


def open_or_create_root(url: str, spacing_mm: tuple[float, float, float]) -> zarr.Group:
    """The root group for writing; created if there is no store yet.

    Raises:
        StoreError: the store has another voxel size, or the folder holds something else.
    """
    if not is_remote(url):
        for file in _abandoned_files(local_path(url)):
            file.unlink()
    root = existing_root(url, "r+", spacing_mm)
    if root is not None:
        return root
    store = GuardedStore(zarr_store(url, read_only=False), url)
    return zarr.create_group(store, zarr_format=3, attributes={ROOT_KEY: new_head(spacing_mm, [])})


def new_head(spacing_mm: Sequence[float], databases: Sequence[str]) -> dict[str, Any]:
    """The root's own attribute."""
    written_by = f"multiseg {version('multiseg')}"
    return {"format": schema.FORMAT, "created_by": written_by, "grid_mm": [*spacing_mm], "databases": [*databases]}


def _abandoned_files(folder: Path) -> list[Path]:
    """The .partial files of a writer that died, if the folder is a store or holds nothing else."""
    partial = [Path(file.path) for file in files_below(folder) if file.name.endswith(".partial")]
    is_ours = (folder / STORE_MARK).exists() or len(partial) == sum(map(_is_not_lock, folder.rglob("*")))
    return partial if is_ours else []


def _is_not_lock(path: Path) -> bool:
    """Whether a path is something other than the lock file."""
    return not path.name.startswith(locks.WRITER)


def check_agreement(stored: Mapping[str, Any], info: DatabaseInfo) -> None:
    """Check that a database with the attributes `stored` can take cases that are prepared as in `info`.

    Raises:
        StoreError: it has another recipe, codec, meaning of codes, template or key of pseudonyms.
    """
    new = info.to_attributes()
    _check_pseudonyms(stored.get("pseudonyms", ""), info)
    _check_template(stored.get(schema.TEMPLATE), info)
    for key in ("recipe", "codec"):
        before, now = (_without_landmarks(attributes[key]) for attributes in (stored, new))
        if before != now:
            raise StoreError(
                f"database {info.name!r} was ingested with {key} {before}, but {now} was asked for. "
                "Ask for the same, or give the database another name."
            )
    for name, labels in new["label_schemas"].items():
        if stored["label_schemas"].get(name, labels) != labels:
            raise StoreError(
                f"database {info.name!r} already has an annotation {name!r} with other codes: "
                f"{stored['label_schemas'][name]}. Give the same codes, or give the annotation another name."
            )


def _check_pseudonyms(key: str, info: DatabaseInfo) -> None:
    """Raises StoreError if a database whose pseudonyms have this key was ingested with another one than `info`'s."""
    if key == info.pseudonyms:
        return
    state = f"pseudonyms{' from another file' if info.pseudonyms else ''}" if key else "their real names"
    raise StoreError(
        f"database {info.name!r}: its cases have {state}. Ingest it as before (--pseudonyms FILE, with the same file), "
        "or give the database another name."
    )


def _check_template(stored: Mapping[str, Any] | None, info: DatabaseInfo) -> None:
    """Raises StoreError if a database was registered to another template than that of `info`, or now to none."""
    if stored is None or (info.template is not None and info.template.sha256 == stored["sha256"]):
        return
    given = "none was given" if info.template is None else f"{info.template} was given"
    raise StoreError(
        f"database {info.name!r}: its cases were registered to the template {Template.text(stored)}, but {given}. "
        "Ingest it as before (--template and --template-mask with the same files), or give the database another name."
    )


def _without_landmarks(recipe: Any) -> Any:
    """A recipe without its intensity scales: it gains one with each new sequence and stays the same recipe."""
    is_recipe = isinstance(recipe, Mapping)
    return {key: value for key, value in recipe.items() if key != "landmarks"} if is_recipe else recipe
