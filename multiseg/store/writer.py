"""Writing a database: rows reserved first, arrays written, and a row committed last, when all is on the disk.

A reader trusts only rows whose status says committed. A writer that dies leaves a pending row, which the
next one takes up again; a case that is replaced gets a new row, and the old one stays until then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from multiseg.errors import ResourceError, StoreError
from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.cases import CaseFiles
from multiseg.store.columns import REQUESTS_AT_ONCE, participant_columns
from multiseg.store.durable import sync_names
from multiseg.store.encoding import ArrayPlan, EncodedCase
from multiseg.store.hierarchy import ROOT_KEY
from multiseg.store.root import DatabaseInfo, check_agreement


def plan_arrays(group: zarr.Group | None, info: DatabaseInfo, modalities: Sequence[str]) -> ArrayPlan:
    """How a database's arrays are cut: as they were made, with new names at the end of their axes."""
    held = {} if group is None else group.attrs.asdict().get("label_schemas", {})
    schemas = {name: LabelSchema.from_json(labels) for name, labels in held.items()} | dict(info.schemas)
    names: dict[str, list[str]] = {}
    for axis, new in (("modality", modalities), ("annotation", schemas)):
        there = [str(name) for name in group[axis][:] if name] if group is not None and axis in group else []
        names[axis] = there + [name for name in new if name not in there]
    image, label = (group.get(name) if group is not None else None for name in ("image", "label"))
    return ArrayPlan(
        modalities=tuple(names["modality"]),
        annotations=tuple(names["annotation"]),
        schemas={name: schemas[name] for name in names["annotation"]},
        modality_chunk=len(names["modality"]) if image is None else image.chunks[1],
        annotation_shard=max(1, len(names["annotation"])) if label is None else label.shards[1],
        codec=info.codec,
    )


def digest_of_sources(sources: Sequence[Mapping[str, Any]]) -> str:
    """One digest over the sha256 of every source by its role."""
    return digest_of_roles({source["role"]: source["sha256"] for source in sources})


def digest_of_roles(hashes: Mapping[str, str]) -> str:
    """One digest over the sha256 of every file by its role."""
    lines = "".join(f"{role}:{sha256}\n" for role, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


class DatabaseWriter:
    """One database open for writing: rows are reserved for cases, and each is written and then committed.

    Raises:
        StoreError: the database exists with another recipe, codec or meaning of codes.
    """

    def __init__(self, root: zarr.Group, info: DatabaseInfo, plan: ArrayPlan) -> None:
        if info.name not in root:
            root.create_group(info.name, attributes=info.to_attributes())
        self.group: zarr.Group = root[info.name]
        self.info = info
        self.plan = plan
        self._opened: dict[str, zarr.Array] = {}
        self._agree_on_attributes()
        self._require_arrays()
        self._grow_names("modality", plan.modalities)
        self._grow_names("annotation", plan.annotations)
        self._fit_sizes()
        self._name_in_root(root)

    def _array(self, name: str) -> zarr.Array:
        if name not in self._opened:  # over a network, opening takes as long as writing
            self._opened[name] = self.group[name]
        return self._opened[name]

    def _write_row(self, row: int, values: Mapping[str, Any]) -> None:
        """A row of several arrays, all at once: each has files of its own."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda name: self._array(name).__setitem__(row, values[name]), values))

    def _name_in_root(self, root: zarr.Group) -> None:
        """Readers go by the root's list; this database is in it from when all of its arrays are there."""
        head = root.attrs[ROOT_KEY]
        if self.info.name not in head["databases"]:
            root.attrs[ROOT_KEY] = head | {"databases": [*head["databases"], self.info.name]}

    def _agree_on_attributes(self) -> None:
        held, asked = self.group.attrs.asdict(), self.info.to_attributes()
        check_agreement(held, self.info)
        said = {key: value for key, value in asked.items() if value and key != "label_schemas"}
        said["label_schemas"] = held["label_schemas"] | asked["label_schemas"]
        if held | said != held:
            self.group.attrs.update(said)

    def _require_arrays(self) -> None:
        """Make every array that is not there yet; a writer that died half-way is taken up here."""
        room = {"modality": 64, "annotation": 16, "structure": max(1, self.plan.num_structures)}
        fixed = {
            "axis": 3,
            "row": 4,
            "column": 4,
            "header_byte": schema.HEADER_BYTES,
            "point": schema.FOREGROUND_POINTS,
        }
        for name, variable in schema.COORDINATES.items():
            if name in self.group:
                continue
            rows = {"foreground": 1, "status": schema.STATUS_ROWS}.get(name, schema.ROWS)
            chunk = {**room, **fixed, "case": rows, "annotation": 1}
            shape = [fixed.get(axis, 0) for axis in variable.axes]
            self._create(name, variable, shape, [chunk[axis] for axis in variable.axes])
        for name in ("image", "label"):
            if name not in self.group:
                self.plan.create(self.group, name, (0, 0, 1, 1, 1))
        # Stores made before xarray was told to decode the image get the attributes with the next ingest.
        if self.group["image"].attrs.asdict() != schema.IMAGE_ATTRIBUTES:
            self.group["image"].attrs.update(schema.IMAGE_ATTRIBUTES)

    def _create(
        self, name: str, variable: schema.Variable, shape: list[int], chunks: list[int], overwrite: bool = False
    ) -> None:
        self.group.create_array(
            name, shape=shape, chunks=chunks, dtype=variable.dtype, fill_value=variable.fill,
            dimension_names=variable.axes, attributes={"long_name": variable.meaning}, overwrite=overwrite,
            compressors=schema.COORDINATE_CODECS,
        )  # fmt: skip

    def _grow_names(self, axis: str, names: Sequence[str]) -> None:
        """Append names to an axis; those that are there keep their places, as the plan has them."""
        array = self._array(axis)
        held = [str(name) for name in array[:] if name]
        if len(held) < len(names):
            array.resize((len(names),))
            array[len(held) :] = np.array(names[len(held) :], dtype=object)

    def _fit_sizes(self, extent: Sequence[int] = (1, 1, 1), num_rows: int = 0) -> None:
        """Grow every array to the present rows, names, structures and the given extent; only metadata changes."""
        size = {
            "case": max(num_rows, self._array("status").shape[0]),
            "modality": len(self.plan.modalities),
            "annotation": len(self.plan.annotations),
            "structure": self.plan.num_structures,
        }
        for axis, voxels, n in zip("ijk", self._array("image").shape[2:], extent, strict=True):
            size[axis] = max(voxels, n)
        for name in [*schema.COORDINATES, *self._participant_columns(), "image", "label"]:
            array = self._array(name)
            shape = tuple(
                size.get(axis, n) for axis, n in zip(array.metadata.dimension_names, array.shape, strict=True)
            )
            if shape != array.shape:
                array.resize(shape)
        names = [name for name in [*schema.COORDINATES, *self._participant_columns()] if name not in size]
        if self.group.attrs.get("coordinates") != " ".join(names):
            self.group.attrs["coordinates"] = " ".join(names)

    def _participant_columns(self) -> list[str]:
        return participant_columns(self.group)

    def states(self) -> dict[str, tuple[int, int]]:
        """Row and state of every case that has a row; a committed row goes before a pending one."""
        names, status = self._array("case")[:], self._array("status")[:]
        found: dict[str, tuple[int, int]] = {}
        for row, (name, state) in enumerate(zip(names, status, strict=True)):
            better = str(name) not in found or state == schema.COMMITTED
            if name and state != schema.SUPERSEDED and better:
                found[str(name)] = (row, int(state))
        return found

    def reserve(self, cases: Sequence[str]) -> dict[str, int]:
        """A row for each case that has to be written: its own pending one, else a free one, else a new one.

        Committed and superseded rows are never touched, since somebody may be reading them; only the name of
        a superseded one goes, where a writer died before it had taken it away.
        """
        states = self.states()
        names, status = self._array("case")[:], self._array("status")[:]
        pending = [int(row) for row in np.flatnonzero(status == schema.PENDING)]
        # A writer that died just before a commit leaves one of that name beside the committed row.
        own = {str(names[row]): row for row in reversed(pending) if names[row]}
        rows = {case: own[case] for case in cases if case in own}
        free = [row for row in pending if row not in set(rows.values())]
        missing = [case for case in cases if case not in rows]
        new = range(len(names), len(names) + max(0, len(missing) - len(free)))
        self._fit_sizes(num_rows=len(names) + len(new))
        rows |= dict(zip(missing, [*free, *new], strict=False))
        names = self._array("case")[:]
        names[np.flatnonzero(status == schema.SUPERSEDED)] = ""
        for case, row in rows.items():
            # Beside a committed row of its own, a new one stays nameless until it is committed.
            names[row] = "" if states.get(case, (0, -1))[1] == schema.COMMITTED else case
        self._array("case")[:] = names
        return rows

    def write(self, row: int, files: CaseFiles, encoded: EncodedCase) -> None:
        """Write a case into its row and commit it, when all of it is on the disk. Until the last step nobody sees it.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        try:
            self._fit_sizes(encoded.grid.shape)
            self._write_volumes(row, encoded)
            self._write_coordinates(row, files, encoded)
            self._commit(row, files.case)
        except ResourceError as error:  # says itself what to do
            raise ResourceError(f"case {files.case!r} is not in the store: {error}") from error
        except OSError as error:
            raise ResourceError(
                f"case {files.case!r} could not be written: {error}. It is not in the store; what was committed "
                "is safe. Make room and run the same command again."
            ) from error

    def _write_volumes(self, row: int, encoded: EncodedCase) -> None:
        store, prefix = self.group.store_path.store, self.group.path
        for name in ("image", "label", "foreground"):
            # What a dead writer left in this row must not show beside a smaller case.
            sync(store.delete_dir(f"{prefix}/{name}/c/{row}"))
        buffer = default_buffer_prototype().buffer
        for (name, rest), data in encoded.shards.items():
            sync(store.set(f"{prefix}/{name}/c/{row}/{rest}", buffer.from_bytes(data)))
        num_annotations, num_structures = encoded.foreground_count.shape
        self._array("foreground")[row, :num_annotations, :num_structures] = encoded.foreground
        self._array("foreground_count")[row] = encoded.foreground_count

    def _write_coordinates(self, row: int, files: CaseFiles, encoded: EncodedCase) -> None:
        names = self.plan.modalities
        at = [names.index(name) for name in encoded.modalities]
        mean, std = np.full(len(names), np.nan), np.full(len(names), np.nan)
        content = np.full(len(names), "", dtype=object)
        mean[at], std[at], content[at] = encoded.mean, encoded.std, encoded.content
        header = np.zeros(schema.HEADER_BYTES, dtype=np.uint8)
        header[: len(encoded.native_header)] = np.frombuffer(encoded.native_header, dtype=np.uint8)
        values = {
            "extent": encoded.grid.shape, "affine": encoded.grid.affine, "native_shape": encoded.native.shape,
            "native_affine": encoded.native.affine, "native_header": header,
            "source_sha256": digest_of_sources(encoded.sources), "sources": json.dumps(encoded.sources),
            "available": np.isin(names, encoded.modalities), "intensity_mean": mean, "intensity_std": std,
            "content": content, "annotated": np.isin(self.plan.annotations, encoded.labels),
        }  # fmt: skip
        self._write_row(row, values)
        self._write_description(row, files)

    def describe(self, row: int, files: CaseFiles) -> None:
        """Write anew, and to the disk, what is known of a case in the store beside its scans."""
        # A split that was given stays so, whatever is described anew.
        was_given = bool(self._array("split_given")[row])
        self._write_description(row, replace(files, split_given=files.split_given or was_given))
        sync_names(self.group)

    def _write_description(self, row: int, files: CaseFiles) -> None:
        """Person, visit, site, split and participants' columns."""
        values: dict[str, Any] = {
            "subject": files.person, "session": files.session, "site": files.site, "split": files.split,
            "split_given": files.split_given,
        }  # fmt: skip
        for column in sorted({*self._participant_columns(), *files.participant}):
            value = files.participant.get(column, "")
            if value != "" and value == value:
                values[column] = self._require_column(column, value)
            elif column in self._participant_columns():
                # No value. A row that a dead writer left may hold another patient's.
                values[column] = self._array(column).fill_value
        self._write_row(row, values)

    def _require_column(self, column: str, value: str | float) -> str | float:
        """A value as its participants' column has it, which is made with its first value: a number among texts is text.

        Raises:
            StoreError: it is a text, and the column holds numbers.
        """
        dtype = "string" if isinstance(value, str) else "float64"
        if column not in self._participant_columns():
            variable = schema.Variable(
                ("case",), dtype, "" if dtype == "string" else float("nan"), "participants' column"
            )
            # What is there but not named, a writer left that died.
            self._create(column, variable, [self._array("status").shape[0]], [schema.ROWS], overwrite=True)
            self.group.attrs[schema.PARTICIPANT_COLUMNS] = sorted([*self._participant_columns(), column])
            self._fit_sizes()
        array = self._array(column)
        if array.dtype.kind != "f":
            return value if isinstance(value, str) else f"{value:g}"
        if isinstance(value, str):
            raise StoreError(
                f"the participants' column {column!r} holds numbers in the store, but now {value!r}. Write a number, "
                "or nothing where none is known."
            )
        return value

    def _commit(self, row: int, case: str) -> None:
        """One write of one chunk makes the new row valid and an older row of the same case invalid."""
        status = self._array("status")[:]
        older, state = self.states().get(case, (row, schema.PENDING))
        replaces = state == schema.COMMITTED and older != row
        self._array("case")[row] = case
        if replaces:
            status[older] = schema.SUPERSEDED
        status[row] = schema.COMMITTED
        # A local store puts all that was written before onto the disk first, and this with its name at once.
        self._array("status")[:] = status
        if replaces:
            self._array("case")[older] = ""

    def release_rows(self) -> None:
        """Give back rows that nobody committed: those at the end go, and the others lose their case's name.

        A pending row with a name is one whose writer is at work or died; that of a case which was refused is free.
        """
        status, names = self._array("status")[:], self._array("case")[:]
        refused = (status == schema.PENDING) & np.array([bool(str(name)) for name in names], dtype=bool)
        if refused.any():
            names[refused] = ""
            self._array("case")[:] = names
        used = int(np.flatnonzero(status != schema.PENDING).max(initial=-1)) + 1
        if used < len(status):
            for name in [*schema.COORDINATES, *self._participant_columns(), "image", "label"]:
                array = self._array(name)
                if array.metadata.dimension_names[0] == "case":
                    array.resize((used, *array.shape[1:]))
        sync_names(self.group)
