"""Reading a store: its databases, its committed cases, and windows of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from multiseg.store.columns import check_names, read_columns
from multiseg.store.dataset import committed_dataset
from multiseg.store.hierarchy import ROOT_KEY, is_remote, local_path, not_readable, open_root
from multiseg.store.parts import LocalParts, Parts
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
        self.group, columns = read_columns(group)
        group, attributes = self.group, self.group.attrs.asdict()
        self.pathology: str = attributes["pathology"]
        self.recipe = Recipe.from_json(attributes["recipe"])
        self.attributes = attributes
        # Opened after the columns, so that they have room for every case and name there.
        self._image, self._label = group["image"], group["label"]
        check_names(group)
        # Where a writer died, or is at work, an axis may have names at its end that nothing else has yet.
        self.modalities = tuple(str(name) for name in group["modality"][: self._image.shape[1]] if name)
        codes = attributes["label_schemas"]
        names = [str(name) for name in group["annotation"][: self._label.shape[1]] if name in codes]
        self.schemas = {name: LabelSchema.from_json(codes[name]) for name in names}
        rows = np.flatnonzero(columns["status"] == schema.COMMITTED)
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
        return _window(self._image, case.row, len(self.modalities), corner, size)

    def codes(self, case: Case, corner: Index3, size: Index3) -> UInt8[np.ndarray, "annotation i j k"]:
        """A window of all annotations, as compact codes; 0 beyond the case."""
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
        try:
            return self.image(case, (0, 0, 0), case.extent), self.codes(case, (0, 0, 0), case.extent)
        except StoreError:  # a file that is not there
            raise
        except (ValueError, RuntimeError) as error:  # zarr and its codecs
            raise StoreError(
                f"{self.name}/{case.name} is damaged: {error}. Find all that is damaged with: multiseg verify STORE; "
                "and ingest those cases again with --redo."
            ) from error

    def foreground(self, case: Case) -> Int16[np.ndarray, "annotation structure point 3"]:
        """Sampled voxels of every structure; rows of -1 are empty."""
        return np.asarray(self.group["foreground"][case.row, : len(self.schemas)])

    def foreground_points(
        self, rows: Sequence[int], annotation: int, structures: Sequence[int]
    ) -> Int16[np.ndarray, "case structure point 3"]:
        """Sampled voxels of some structures of one annotation, of many cases in one go; rows of -1 are empty."""
        return np.asarray(self.group["foreground"].oindex[list(rows), annotation, list(structures)])

    def sources(self, case: Case) -> list[dict[str, Any]]:
        """Every source file with its sha256 and each step it took."""
        return list(json.loads(str(self.group["sources"][case.row])))

    def native(self, case: Case) -> tuple[Grid, bytes]:
        """The reference image's own grid and raw NIfTI header, for the way home."""
        i, j, k = (int(n) for n in self.group["native_shape"][case.row])
        header = whole_header(bytes(self.group["native_header"][case.row]))
        return Grid(self.group["native_affine"][case.row], (i, j, k)), header


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
    """An open store: a mapping of database names to databases."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = open_root(url, "r")
        i, j, k = self.root.attrs[ROOT_KEY]["grid_mm"]
        self.spacing_mm = (float(i), float(j), float(k))
        # Not by listing: a web server cannot, and a group whose writer died before the first case is not named.
        names = sorted(self.root.attrs[ROOT_KEY]["databases"])
        self.databases = {name: self._database(name) for name in names}

    def __repr__(self) -> str:
        size = " x ".join(f"{mm:g}" for mm in self.spacing_mm)
        head = f"<Store {self.url}: {len(self.cases)} cases, voxels of {size} mm"
        return "\n    ".join([head, *map(repr, self.databases.values())]) + ">"

    def _database(self, name: str) -> Database:
        try:
            return Database(self.root[name], name)
        except (KeyError, FileNotFoundError) as error:
            raise StoreError(
                f"{self.url} names a database {name!r}, but its {error} is not there: the store is damaged or only "
                "partly copied. Copy it again; or if the database was removed on purpose, take its name out of "
                f'"databases" in {self.url}/zarr.json.'
            ) from error
        except PermissionError as error:
            raise not_readable(self.url, error) from error

    def __getitem__(self, name: str) -> Database:
        if name not in self.databases:
            raise StoreError(f"{self.url} has no database {name!r}. It has: {', '.join(self.databases) or 'none'}.")
        return self.databases[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.databases)

    def __len__(self) -> int:
        return len(self.databases)

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(case for database in self.databases.values() for case in database.cases)

    def parts(self, disk_cache: str = "", budget_bytes: int = 0) -> Parts:
        """The bytes of the store's objects; those of a remote store are kept below `disk_cache`, if that is given."""
        if not is_remote(self.url):
            return LocalParts(local_path(self.url))
        from multiseg.store.disk_cache import DiskCache  # heavy, and only remote stores need them
        from multiseg.store.remote_parts import RemoteParts

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
        return committed_dataset(self[database].group)


def open_store(url: Path | str) -> Store:
    """Open a store for reading, from a local path or any URL of an object store (s3://, gs://, https://).

    Raises:
        StoreError: there is no multiseg store at `url`, or it is damaged.
        ResourceError: the place cannot be read or reached.
    """
    return Store(str(url))
