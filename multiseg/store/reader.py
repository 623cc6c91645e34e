"""Reading a store: its databases, its committed cases, and windows of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from jaxtyping import Bool, Float, Int, Int16, Shaped, UInt8
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from multiseg.errors import StoreError, few
from multiseg.files import files_below
from multiseg.labels import LabelSchema, LabelSpace, LabelView
from multiseg.store import schema
from multiseg.store.array_layout import ArrayLayout
from multiseg.store.byte_ranges import LocalParts, Parts
from multiseg.store.checks.layout import damaged_files, damaged_files_of_case
from multiseg.store.columns import check_axis_names, check_room, lengths_of, read_columns
from multiseg.store.copies import check_copies
from multiseg.store.damage import damaged, reading
from multiseg.store.hierarchy import ROOT_KEY, check_head, is_remote, local_path, open_root
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.records import whole_header
from multiseg.types import Index3


@dataclass(frozen=True, eq=False)
class Case:
    """One committed case: where it lies and what is known of it. Arrays are read through its database.

    `modalities` are the sequences it has, `annotated` says which of the database's annotations it has,
    `foreground_count` is [annotation structure] in voxels; `intensity` are mean and standard deviation by
    sequence: raw values are `image * std + mean`. `content` is the digest of each sequence's voxels in its own file,
    the same for one scan under any name, voxel size and split; `source_sha256` is that of all its files. `shards` names
    the files that it has in the store.
    """

    database: str
    name: str
    row: int
    pathology: str
    subject: str
    session: str
    site: str
    split: str
    modalities: tuple[str, ...]
    annotated: Bool[np.ndarray, " annotation"]
    foreground_count: Int[np.ndarray, "annotation structure"]
    grid: Grid
    participant: Mapping[str, str | float] = field(default_factory=dict)
    intensity: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict, repr=False)
    source_sha256: str = field(default="", repr=False)
    shards: str = field(default="", repr=False)

    def __repr__(self) -> str:
        size = " x ".join(str(n) for n in self.extent)
        return f"<Case {self.database}/{self.name}: {' '.join(self.modalities)}, {size} voxels, {self.split}>"

    @property
    def extent(self) -> Index3:
        return self.grid.shape


class Database:
    """One database of a store as it was when it was opened; `cases` are the committed ones, by their rows.

    What is written later, and a case that replaces one of these, is seen by whoever opens the store then.
    """

    def __init__(self, group: zarr.Group, name: str) -> None:
        self.name = name
        self.group, columns, record = read_columns(group)
        group, attributes = self.group, self.group.attrs.asdict()
        self.pathology: str = attributes["pathology"]
        self.recipe = Recipe.from_json(attributes["recipe"])
        self.attributes = attributes
        # Opened after the columns, so that they have room for every case and name there.
        self._image, self._label = group["image"], group["label"]
        url = str(group.store)
        check_copies(url, name, attributes, {"record": record, "image": self._image, "label": self._label})
        check_axis_names(group)
        # Where a writer died, or is at work, the axes may have more names, which nothing else has yet.
        modalities, annotations = (attributes[attribute] for attribute in schema.NAMED_AXES.values())
        self.modalities: tuple[str, ...] = tuple(modalities)
        self.schemas = {name: LabelSchema.from_json(attributes["label_schemas"][name]) for name in annotations}
        rows = np.setdiff1d(
            np.flatnonzero(columns["status"] == schema.COMMITTED), attributes.get(schema.REMOVING, [])
        ).astype(int)
        i, j, k = (int(n) for n in columns["extent"][rows].max(axis=0, initial=0))
        needed = {"case": int(rows.max(initial=-1)) + 1, **lengths_of(group), "i": i, "j": j, "k": k}
        for array in (self._image, self._label):
            check_room(url, array, needed)
        self.cases = tuple(self._case(int(row), columns) for row in rows)
        self._by_name = {case.name: case for case in reversed(self.cases)}

    def __repr__(self) -> str:
        splits = ", ".join(f"{n} {split}" for split, n in sorted(Counter(case.split for case in self.cases).items()))
        annotations = "; ".join(f"{name}: {', '.join(codes.names)}" for name, codes in self.schemas.items())
        return (
            f"<Database {self.name}: {self.pathology}, {len(self.cases)} cases ({splits or 'none'}), "
            f"{' '.join(self.modalities)}; {annotations or 'no annotation'}>"
        )

    def _case(self, row: int, held: Mapping[str, Any]) -> Case:
        i, j, k = (int(n) for n in held["extent"][row])
        text = {name: str(held[name][row]) for name in ("subject", "session", "site", "split")}
        has = held["available"][row]
        own = {name: held[name][row] for name in held if name not in schema.RESERVED}
        scales = zip(self.modalities, held["intensity_mean"][row], held["intensity_std"][row], has, strict=False)
        digests = zip(self.modalities, held["content"][row], has, strict=False)
        return Case(
            database=self.name,
            name=str(held["case"][row]),
            row=row,
            pathology=self.pathology,
            **text,
            modalities=tuple(name for name, there in zip(self.modalities, has, strict=False) if there),
            annotated=held["annotated"][row, : len(self.schemas)],
            foreground_count=held["foreground_count"][row, : len(self.schemas)],
            grid=Grid(held["affine"][row], (i, j, k)),
            participant={n: float(v) if isinstance(v, np.floating) else str(v) for n, v in own.items()},
            intensity={name: (float(mean), float(std)) for name, mean, std, there in scales if there},
            content={name: str(digest) for name, digest, there in digests if there and digest},
            source_sha256=str(held["source_sha256"][row]),
            shards=str(held["shards"][row]),
        )

    def __getitem__(self, name: str) -> Case:
        if name not in self._by_name:
            raise StoreError(
                f"database {self.name!r} has no case {name!r}. It has: {few([case.name for case in self.cases])}."
            )
        return self._by_name[name]

    def image(self, case: Case, corner: Index3, size: Index3) -> Float[np.ndarray, "modality i j k"]:
        """A window of all the database's sequences, float16; 0 beyond the case."""
        with self._reading(case):
            return _window(self._image, case.row, len(self.modalities), corner, size)

    def codes(self, case: Case, corner: Index3, size: Index3) -> UInt8[np.ndarray, "annotation i j k"]:
        """A window of all annotations, as compact codes; 0 beyond the case."""
        with self._reading(case):
            return _window(self._label, case.row, len(self.schemas), corner, size)

    def layout(self, name: str) -> ArrayLayout:
        """How "image" or "label" lies on disk.

        Raises:
            StoreError: it is packed in no way that multiseg packs.
        """
        return _layout(self._image if name == "image" else self._label)

    def label_view(self, case: Case, space: LabelSpace) -> LabelView:
        """How the case's annotations become targets in a label space."""
        return space.view(self.schemas, case.annotated.tolist())

    def whole(self, case: Case) -> tuple[Float[np.ndarray, "modality i j k"], UInt8[np.ndarray, "annotation i j k"]]:
        """All sequences and all annotations of a case.

        Raises:
            StoreError: a file of it is damaged or not there.
        """
        return self.image(case, (0, 0, 0), case.extent), self.codes(case, (0, 0, 0), case.extent)

    def foreground(self, case: Case) -> Int16[np.ndarray, "annotation structure point 3"]:
        """Sampled voxels of every structure; rows of -1 are empty."""
        with self._reading(case):
            return np.asarray(self.group["foreground"][case.row, : len(self.schemas)])

    def foreground_points(
        self, rows: Sequence[int], annotation: int, structures: Sequence[int]
    ) -> Int16[np.ndarray, "case structure point 3"]:
        """Sampled voxels of some structures of one annotation, of many cases in one go; rows of -1 are empty."""
        with reading(str(self.group.store), f"a case of database {self.name!r}"):
            return np.asarray(self.group["foreground"].oindex[list(rows), annotation, list(structures)])

    def sources(self, case: Case) -> list[dict[str, Any]]:
        """Every source file with its sha256 and each step it took."""
        with self._reading(case):
            return list(json.loads(str(self.group["sources"][case.row])))

    def native(self, case: Case) -> tuple[Grid, bytes]:
        """The reference image's own grid and raw NIfTI header, for the way home."""
        with self._reading(case):
            i, j, k = (int(n) for n in self.group["native_shape"][case.row])
            header = whole_header(bytes(self.group["native_header"][case.row]))
            return Grid(self.group["native_affine"][case.row], (i, j, k)), header

    def _reading(self, case: Case) -> AbstractContextManager[None]:
        """Around whatever is read of one case; StoreError where it is damaged."""
        url = str(self.group.store)
        return reading(url, f"{self.name}/{case.name}", partial(damaged_files_of_case, url, self.name, case.row))


def _window(array: zarr.Array, row: int, num: int, corner: Index3, size: Index3) -> Shaped[np.ndarray, "channel i j k"]:
    """The first `num` volumes of a row, in a window; 0 beyond."""
    inside = [
        slice(max(0, c), max(0, min(c + n, end))) for c, n, end in zip(corner, size, array.shape[2:], strict=True)
    ]
    if [part.stop - part.start for part in inside] == list(size):
        return np.asarray(array[row, :num, *inside])
    window = np.zeros((num, *size), dtype=array.dtype)
    if all(part.stop > part.start for part in inside):
        put = [slice(part.start - c, part.stop - c) for part, c in zip(inside, corner, strict=True)]
        window[:, *put] = array[row, :num, *inside]
    return window


def _layout(array: zarr.Array) -> ArrayLayout:
    (sharding,) = array.metadata.codecs if array.shards else (None,)
    packers = [type(codec) for codec in getattr(sharding, "codecs", ())]
    known = {(BytesCodec, BloscCodec, Crc32cCodec): "blosc", (BytesCodec, Crc32cCodec): "none"}
    codec = known.get(tuple(packers))
    if codec is None or array.shards is None or array.shards[0] != 1:
        raise StoreError(
            f"{array.path} is packed by {', '.join(one.__name__ for one in packers) or 'no shards'}, which "
            "multiseg does not read. Was it written by another program?"
        )
    _, *shape = array.shape
    _, *chunk = array.chunks
    _, *shard = array.shards
    return ArrayLayout(array.path, tuple(shape), tuple(chunk), tuple(shard), str(array.dtype), codec)


class Store:
    """An open store: a mapping of database names to databases.

    One whose metadata or coordinates are damaged does not keep the others from being read. Its error is in `damaged` by
    its name, and is raised where it is asked for, or where all databases are meant.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = open_root(url, "r")
        # Not by listing: a web server cannot, and a group whose writer died before the first case is not named.
        names, self.spacing_mm = check_head(url, self.root.attrs[ROOT_KEY])
        self.databases: dict[str, Database] = {}
        self.damaged: dict[str, StoreError] = {}
        for name in sorted(names):
            try:
                self.databases[name] = self._database(name)
            except StoreError as error:
                self.damaged[name] = error

    def __repr__(self) -> str:
        size = " x ".join(f"{mm:g}" for mm in self.spacing_mm)
        head = f"<Store {self.url}: {len(self.sound_cases)} cases, voxels of {size} mm"
        damaged = [f"<Database {name}: damaged>" for name in self.damaged]
        return "\n    ".join([head, *map(repr, self.databases.values()), *damaged]) + ">"

    def _database(self, name: str) -> Database:
        with reading(self.url, f"database {name!r}", partial(damaged_files, self.url, name)):
            database = Database(self.root[name], name)
        if database.recipe.spacing_mm != self.spacing_mm:
            said = f"it says voxels of {self.spacing_mm} mm, but {name!r} has {database.recipe.spacing_mm} mm"
            raise damaged(self.url, "the root", [("zarr.json", said)])
        return database

    def __getitem__(self, name: str) -> Database:
        if name in self.damaged:
            raise self.damaged[name]
        if name not in self.databases:
            raise StoreError(f"{self.url} has no database {name!r}. It has: {', '.join(self) or 'none'}.")
        return self.databases[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted([*self.databases, *self.damaged]))

    def __len__(self) -> int:
        return len(self.databases) + len(self.damaged)

    @property
    def removed(self) -> dict[str, str]:
        """The digests of the scans that were removed from the store, and when; of databases that are not damaged."""
        return {
            str(digest): str(one["date"])
            for database in self.databases.values()
            for one in database.attributes.get(schema.REMOVED, ())
            for digest in one["scans"]
        }

    def check_sound(self, names: Iterable[str] = ()) -> None:
        """Whether these databases, or without names all, can be read. A part must not pass for the whole.

        Raises:
            StoreError: one is damaged; its file is named.
        """
        asked = list(names) or list(self)
        for name in (name for name in asked if name in self.damaged):
            raise self.damaged[name]

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every committed case.

        Raises:
            StoreError: a database is damaged, so that its cases are not known.
        """
        self.check_sound()
        return self.sound_cases

    @property
    def sound_cases(self) -> tuple[Case, ...]:
        """The committed cases of those databases that are not damaged."""
        return tuple(case for database in self.databases.values() for case in database.cases)

    def parts(self, disk_cache: str = "", budget_bytes: int = 0) -> Parts:
        """The bytes of the store's objects; those of a remote store are kept below `disk_cache`, if that is given."""
        if not is_remote(self.url):
            return LocalParts(local_path(self.url))
        from multiseg.store.remote.disk_cache import DiskCache  # heavy, and only remote stores need them
        from multiseg.store.remote.range_requests import RemoteParts

        return RemoteParts(self.url, DiskCache(disk_cache, budget_bytes) if disk_cache else None)

    def size_on_disk(self, database: str) -> int | None:
        """Bytes that a database takes on the local disk; None for a remote store."""
        if is_remote(self.url):
            return None
        sizes = 0
        for file in files_below(local_path(self.url) / database):
            with suppress(FileNotFoundError):  # a writer is at work
                sizes += file.stat().st_size
        return sizes

    def dataset(self, database: str) -> xr.Dataset:
        """One database as a lazy xarray dataset of its committed cases, with named coordinates."""
        from multiseg.store.dataset import committed_dataset  # heavy: it needs dask, and few readers ask for it

        with reading(self.url, f"database {database!r}", partial(damaged_files, self.url, database)):
            return committed_dataset(self[database].group)


def open_store(url: Path | str) -> Store:
    """Open a store for reading, from a local path or any URL of an object store (s3://, gs://, https://).

    Raises:
        StoreError: there is no multiseg store at `url`, or it is damaged.
        ResourceError: the place cannot be read or reached.
    """
    return Store(str(url))
