"""Reading a store: its databases, its committed cases, and windows of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
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
from multiseg.store.coordinate_chunks import open_arrays, read_rows
from multiseg.store.copies import check_copies
from multiseg.store.damage import damaged, reading
from multiseg.store.hierarchy import ROOT_KEY, check_head, is_remote, local_path, open_group, open_root
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.records import known_affine, whole_header
from multiseg.types import Affine, Index3


@dataclass(frozen=True, eq=False)
class Case:
    """One committed case: its place in the store and its metadata. Its arrays are read through its database.

    Attributes:
        modalities: the sequences that it has.
        annotated: which of the database's annotations it has.
        foreground_count: voxels by annotation and structure.
        intensity: mean and standard deviation by sequence; raw values are `image * std + mean`.
        content: the digest of each sequence's voxels in its source file; it does not depend on the scan's name, the
            store's voxel size and the split.
        source_sha256: one digest of all its source files.
        shards: its files in the store.
        to_template: its world in RAS+ mm to that of its database's template; None if unknown.
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
    to_template: Affine | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        size = " x ".join(str(n) for n in self.extent)
        return f"<Case {self.database}/{self.name}: {' '.join(self.modalities)}, {size} voxels, {self.split}>"

    @property
    def extent(self) -> Index3:
        return self.grid.shape


class Database:
    """One database of a store, as it was when the store was opened. `cases` are the committed ones, sorted by row.

    Open the store again to see what was written later.
    """

    def __init__(self, group: zarr.Group, name: str) -> None:
        self.name = name
        self.group, columns, record = read_columns(group)
        group, attributes = self.group, self.group.attrs.asdict()
        self.pathology: str = attributes["pathology"]
        self.recipe = Recipe.from_json(attributes["recipe"])
        self.attributes = attributes
        # Open them after reading the columns, so that they have room for every case and name.
        self._image, self._label = open_arrays(group, ["image", "label"]).values()
        url = str(group.store)
        check_copies(url, name, attributes, {"record": record, "image": self._image, "label": self._label})
        check_axis_names(group)
        # Not the names along the axes: a writer that died, or is at work, may have added some that nothing uses yet.
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

    def _case(self, row: int, columns: Mapping[str, Any]) -> Case:
        i, j, k = (int(n) for n in columns["extent"][row])
        text = {name: str(columns[name][row]) for name in ("subject", "session", "site", "split")}
        has = columns["available"][row]
        participant_values = {name: columns[name][row] for name in columns if name not in schema.RESERVED}
        scales = zip(self.modalities, columns["intensity_mean"][row], columns["intensity_std"][row], has, strict=False)
        digests = zip(self.modalities, columns["content"][row], has, strict=False)
        return Case(
            database=self.name,
            name=str(columns["case"][row]),
            row=row,
            pathology=self.pathology,
            **text,
            modalities=tuple(name for name, has_it in zip(self.modalities, has, strict=False) if has_it),
            annotated=columns["annotated"][row, : len(self.schemas)],
            foreground_count=columns["foreground_count"][row, : len(self.schemas)],
            grid=Grid(columns["affine"][row], (i, j, k)),
            participant={n: float(v) if isinstance(v, np.floating) else str(v) for n, v in participant_values.items()},
            intensity={name: (float(mean), float(std)) for name, mean, std, has_it in scales if has_it},
            content={name: str(digest) for name, digest, has_it in digests if has_it and digest},
            source_sha256=str(columns["source_sha256"][row]),
            shards=str(columns["shards"][row]),
            to_template=known_affine(columns["to_template"][row]) if "to_template" in columns else None,
        )

    @property
    def template(self) -> Mapping[str, str] | None:
        """The name and the sha256 of the template that its cases were registered to; None if there is none."""
        template: Mapping[str, str] | None = self.attributes.get(schema.TEMPLATE)
        return template

    def hide(self, name: str) -> None:
        """Read all cases as if they had no annotation and no sequence of this name, until the store is opened again."""
        hidden = np.array([annotation == name for annotation in self.schemas])
        self.cases = tuple(
            replace(
                case,
                annotated=case.annotated & ~hidden,
                modalities=tuple(modality for modality in case.modalities if modality != name),
            )
            for case in self.cases
        )
        self._by_name = {case.name: case for case in reversed(self.cases)}

    def resplit(self, splits: Mapping[str, str]) -> None:
        """Read all cases with these splits, by name, instead of their own, until the store is opened again."""
        self.cases = tuple(replace(case, split=splits[case.name]) for case in self.cases)
        self._by_name = {case.name: case for case in reversed(self.cases)}

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
        """How "image" or "label" is stored on disk.

        Raises:
            StoreError: multiseg does not read its compression.
        """
        return _layout(self._image if name == "image" else self._label)

    def label_view(self, case: Case, space: LabelSpace) -> LabelView:
        """How the case's annotations become targets in a label space."""
        return space.view(self.schemas, case.annotated.tolist(), case.pathology)

    def whole(self, case: Case) -> tuple[Float[np.ndarray, "modality i j k"], UInt8[np.ndarray, "annotation i j k"]]:
        """All sequences and all annotations of a case.

        Raises:
            StoreError: a file of the case is damaged or missing.
        """
        return self.image(case, (0, 0, 0), case.extent), self.codes(case, (0, 0, 0), case.extent)

    def foreground(self, case: Case) -> Int16[np.ndarray, "annotation structure point 3"]:
        """Sampled voxels of every structure; rows of -1 are empty."""
        with self._reading(case):
            return np.asarray(self._row(case, "foreground")[0][: len(self.schemas)])

    def foreground_points(
        self, rows: Sequence[int], annotation: int, structures: Sequence[int]
    ) -> Int16[np.ndarray, "case structure point 3"]:
        """Sampled voxels of some structures of one annotation, for many cases at once; rows of -1 are empty."""
        with reading(str(self.group.store), f"a case of database {self.name!r}"):
            return np.asarray(self.group["foreground"].oindex[list(rows), annotation, list(structures)])

    def sources(self, case: Case) -> list[dict[str, Any]]:
        """Every source file with its sha256 and each step it took."""
        with self._reading(case):
            return list(json.loads(str(*self._row(case, "sources"))))

    def native(self, case: Case) -> tuple[Grid, bytes]:
        """The grid and the raw NIfTI header of the reference image."""
        with self._reading(case):
            shape, affine, header = self._row(case, "native_shape", "native_affine", "native_header")
            i, j, k = (int(n) for n in shape)
            return Grid(affine, (i, j, k)), whole_header(bytes(header))

    def _row(self, case: Case, *names: str) -> list[Any]:
        """A case's row of each of these arrays. They are opened again: the files may have been repaired."""
        return list(read_rows(open_arrays(self.group, names), case.row).values())

    def _reading(self, case: Case) -> AbstractContextManager[None]:
        """Wrap reading of one case: damage becomes a StoreError."""
        url = str(self.group.store)
        return reading(url, f"{self.name}/{case.name}", partial(damaged_files_of_case, url, self.name, case.row))


def _window(
    array: zarr.Array, row: int, num_volumes: int, corner: Index3, size: Index3
) -> Shaped[np.ndarray, "channel i j k"]:
    """A window of the first `num_volumes` volumes of a row; 0 beyond the array."""
    inside = [
        slice(max(0, offset), max(0, min(offset + length, end)))
        for offset, length, end in zip(corner, size, array.shape[2:], strict=True)
    ]
    if [part.stop - part.start for part in inside] == list(size):
        return np.asarray(array[row, :num_volumes, *inside])
    window = np.zeros((num_volumes, *size), dtype=array.dtype)
    if all(part.stop > part.start for part in inside):
        target = [slice(part.start - offset, part.stop - offset) for part, offset in zip(inside, corner, strict=True)]
        window[:, *target] = array[row, :num_volumes, *inside]
    return window


def _layout(array: zarr.Array) -> ArrayLayout:
    (sharding,) = array.metadata.codecs if array.shards else (None,)
    codecs = [type(codec) for codec in getattr(sharding, "codecs", ())]
    names_of_codecs = {(BytesCodec, BloscCodec, Crc32cCodec): "blosc", (BytesCodec, Crc32cCodec): "none"}
    codec_name = names_of_codecs.get(tuple(codecs))
    if codec_name is None or array.shards is None or array.shards[0] != 1:
        raise StoreError(
            f"{array.path} has the codecs {', '.join(codec.__name__ for codec in codecs) or '(none)'}, which "
            "multiseg does not read. Was it written by another program?"
        )
    _, *shape = array.shape
    _, *chunk = array.chunks
    _, *shard = array.shards
    return ArrayLayout(array.path, tuple(shape), tuple(chunk), tuple(shard), str(array.dtype), codec_name)


class Store:
    """An open store: a mapping of database names to databases.

    If the metadata or coordinates of a database are damaged, the others can still be read. The error of the damaged one
    is in `damaged` under its name. It is raised when this database, or the whole store, is needed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = open_root(url, "r")
        # The root's list, not a listing of folders: a web server lists nothing, and a writer may have died before its
        # database had a case.
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
            database = Database(open_group(self.root.store_path, name), name)
        if database.recipe.spacing_mm != self.spacing_mm:
            problem = f"its voxel size is {self.spacing_mm} mm, but that of {name!r} is {database.recipe.spacing_mm} mm"
            raise damaged(self.url, "the root", [("zarr.json", problem)])
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
        """The digests of the scans that were removed from undamaged databases, with the date of removal."""
        return {
            str(digest): str(removal["date"])
            for database in self.databases.values()
            for removal in database.attributes.get(schema.REMOVED, ())
            for digest in removal["scans"]
        }

    def check_sound(self, names: Iterable[str] = ()) -> None:
        """Check that these databases can be read; without names, all. A part must not pass for the whole.

        Raises:
            StoreError: one is damaged; the error names its file.
        """
        for name in list(names) or list(self):
            if name in self.damaged:
                raise self.damaged[name]

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every committed case.

        Raises:
            StoreError: a database is damaged, so that its cases are unknown.
        """
        self.check_sound()
        return self.sound_cases

    @property
    def sound_cases(self) -> tuple[Case, ...]:
        """The committed cases of the undamaged databases."""
        return tuple(case for database in self.databases.values() for case in database.cases)

    def parts(self, disk_cache: str = "", budget_bytes: int = 0) -> Parts:
        """Byte ranges of the store's objects; a remote store caches whole objects in `disk_cache`, if given."""
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
        ResourceError: it cannot be read or reached.
    """
    return Store(str(url))
