"""Writing a database: rows reserved first, arrays flushed to disk, and a row committed last.

A reader trusts only rows whose status says committed. A writer that dies leaves a pending row, which the
next one takes up again; a case that is replaced gets a new row, and the old one stays until then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np
import zarr
from zarr.core.sync import sync

from multiseg.errors import ResourceError, StoreError
from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.cases import CaseFiles
from multiseg.store.grids import sample_foreground
from multiseg.store.prepare import PreparedCase
from multiseg.store.root import DatabaseInfo, check_agreement


class DatabaseWriter:
    """One database open for writing. `rows` maps the case names of committed and pending rows to them.

    Raises:
        StoreError: the database exists with another recipe, codec or meaning of codes.
    """

    def __init__(self, root: zarr.Group, info: DatabaseInfo, modalities: Sequence[str]) -> None:
        if info.name not in root:
            root.create_group(info.name, attributes=info.to_attributes())
        self.group: zarr.Group = root[info.name]
        self.info = info
        self._agree_on_attributes()
        self._require_arrays(len(modalities), len(info.schemas))
        self.modalities = self._grow_names("modality", modalities)
        self.annotations = self._grow_names("annotation", list(info.schemas))
        self._fit_sizes()

    def _agree_on_attributes(self) -> None:
        held, asked = self.group.attrs.asdict(), self.info.to_attributes()
        check_agreement(held, self.info)
        merged = held["label_schemas"] | asked["label_schemas"]
        said = {key: value for key, value in asked.items() if value and key != "label_schemas"}
        self.group.attrs.update(said | {"label_schemas": merged})
        self.schemas = {name: LabelSchema.from_json(labels) for name, labels in merged.items()}

    def _require_arrays(self, num_modalities: int, num_annotations: int) -> None:
        """Make every array that is not there yet; a writer that died half-way is taken up here."""
        room = {"modality": 64, "annotation": 16, "structure": max(1, self._num_structures())}
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
        inner, shard = (schema.INNER,) * 3, (schema.SHARD,) * 3
        m, a = num_modalities, max(1, num_annotations)
        if "image" not in self.group:
            self._create_volumes("image", schema.IMAGE_AXES, "float16", (1, m, *inner), (1, m, *shard), self.info.codec)
        if "label" not in self.group:
            chunks, shards = (1, 1, *inner), (1, a, *shard)
            self._create_volumes("label", schema.LABEL_AXES, "uint8", chunks, shards, schema.LABEL_CODEC)

    def _create(self, name: str, variable: schema.Variable, shape: list[int], chunks: list[int]) -> None:
        self.group.create_array(
            name, shape=shape, chunks=chunks, dtype=variable.dtype, fill_value=variable.fill,
            dimension_names=variable.axes, attributes={"long_name": variable.meaning},
        )  # fmt: skip

    def _create_volumes(
        self,
        name: str,
        axes: tuple[str, ...],
        dtype: str,
        chunks: tuple[int, ...],
        shards: tuple[int, ...],
        codec: str,
    ) -> None:
        self.group.create_array(
            name, shape=(0, 0, 1, 1, 1), chunks=chunks, shards=shards, dtype=dtype, fill_value=0,
            compressors=schema.CODECS[codec], dimension_names=axes,
        )  # fmt: skip

    def _num_structures(self) -> int:
        return max((len(labels.structures) for labels in self.schemas.values()), default=0)

    def _grow_names(self, axis: str, names: Sequence[str]) -> tuple[str, ...]:
        """Append names to an axis; those that are there keep their places."""
        array = self.group[axis]
        held = [str(name) for name in array[:] if name]
        new = [name for name in names if name not in held]
        if new:
            array.resize((len(held) + len(new),))
            array[len(held) :] = np.array(new, dtype=object)
        return tuple(held + new)

    def _fit_sizes(self, extent: Sequence[int] = (1, 1, 1), num_rows: int = 0) -> None:
        """Grow every array to the present rows, names, structures and the given extent; only metadata changes."""
        size = {
            "case": max(num_rows, self.group["status"].shape[0]),
            "modality": len(self.modalities),
            "annotation": len(self.annotations),
            "structure": self._num_structures(),
        }
        for axis, voxels, n in zip("ijk", self.group["image"].shape[2:], extent, strict=True):
            size[axis] = max(voxels, n)
        for name in [*schema.COORDINATES, *self._participant_columns(), "image", "label"]:
            array = self.group[name]
            shape = tuple(
                size.get(axis, n) for axis, n in zip(array.metadata.dimension_names, array.shape, strict=True)
            )
            if shape != array.shape:
                array.resize(shape)
        names = [name for name in [*schema.COORDINATES, *self._participant_columns()] if name not in size]
        if self.group.attrs.get("coordinates") != " ".join(names):
            self.group.attrs["coordinates"] = " ".join(names)

    def _participant_columns(self) -> list[str]:
        return sorted(set(self.group.array_keys()) - schema.RESERVED)

    def states(self) -> dict[str, tuple[int, int]]:
        """Row and state of every case that has a row; a committed row goes before a pending one."""
        names, status = self.group["case"][:], self.group["status"][:]
        found: dict[str, tuple[int, int]] = {}
        for row, (name, state) in enumerate(zip(names, status, strict=True)):
            better = str(name) not in found or state == schema.COMMITTED
            if name and state != schema.SUPERSEDED and better:
                found[str(name)] = (row, int(state))
        return found

    def reserve(self, cases: Sequence[str]) -> dict[str, int]:
        """A row for each case that has to be written: its own pending one, else a free one, else a new one.

        Committed and superseded rows are never touched: somebody may be reading them.
        """
        states = self.states()
        names, status = self.group["case"][:], self.group["status"][:]
        rows = {case: states[case][0] for case in cases if states.get(case, (0, -1))[1] == schema.PENDING}
        taken = set(rows.values())
        wanted = set(cases)
        free = [
            row for row in range(len(names))
            if status[row] == schema.PENDING and row not in taken and names[row] not in wanted
        ]  # fmt: skip
        missing = [case for case in cases if case not in rows]
        new = range(len(names), len(names) + max(0, len(missing) - len(free)))
        self._fit_sizes(num_rows=len(names) + len(new))
        rows |= dict(zip(missing, [*free, *new], strict=False))
        names = self.group["case"][:]
        for case, row in rows.items():
            # Beside a committed row of its own, a new one stays nameless until it is committed.
            names[row] = "" if states.get(case, (0, -1))[1] == schema.COMMITTED else case
        self.group["case"][:] = names
        return rows

    def write(self, row: int, files: CaseFiles, prepared: PreparedCase, digest: str) -> None:
        """Write a case into its row, flush it to disk, and commit it. Until the last step nobody sees it.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        try:
            self._fit_sizes(prepared.grid.shape)
            self._write_volumes(row, prepared)
            self._write_coordinates(row, files, prepared, digest)
            self._flush(row)
            self._commit(row, files.case)
        except OSError as error:
            raise ResourceError(
                f"case {files.case!r} could not be written: {error}. It is not in the store; what was committed "
                "is safe. Make room and run the same command again."
            ) from error

    def _write_volumes(self, row: int, prepared: PreparedCase) -> None:
        i, j, k = prepared.grid.shape
        for name in ("image", "label", "foreground"):
            array = self.group[name]
            # What a dead writer left in this row must not show beside a smaller case.
            sync(array.store_path.store.delete_dir(f"{array.path}/c/{row}"))
        stacked = np.zeros((len(self.modalities), i, j, k), dtype=np.float16)
        for name, image in zip(prepared.modalities, prepared.images, strict=True):
            stacked[self.modalities.index(name)] = image
        self.group["image"][row, :, :i, :j, :k] = stacked
        counts = np.zeros((len(self.annotations), self._num_structures()), dtype=np.int64)
        for name, codes in prepared.labels.items():
            at, n = self.annotations.index(name), len(self.schemas[name].structures)
            self.group["label"][row, at, :i, :j, :k] = codes
            counts[at, :n], points = sample_foreground(codes, n, schema.FOREGROUND_POINTS, seed=row)
            self.group["foreground"][row, at, :n] = points
        self.group["foreground_count"][row] = counts

    def _write_coordinates(self, row: int, files: CaseFiles, prepared: PreparedCase, digest: str) -> None:
        available = np.isin(self.modalities, prepared.modalities)
        statistics = np.full((2, len(self.modalities)), np.nan)
        for at, name in enumerate(prepared.modalities):
            statistics[:, self.modalities.index(name)] = prepared.mean[at], prepared.std[at]
        header = np.zeros(schema.HEADER_BYTES, dtype=np.uint8)
        header[: len(prepared.native_header)] = np.frombuffer(prepared.native_header, dtype=np.uint8)
        values = {
            "subject": files.subject or files.case, "session": files.session, "site": files.site, "split": files.split,
            "extent": prepared.grid.shape, "affine": prepared.grid.affine, "native_shape": prepared.native.shape,
            "native_affine": prepared.native.affine, "native_header": header, "source_sha256": digest,
            "sources": json.dumps(prepared.sources), "available": available, "intensity_mean": statistics[0],
            "intensity_std": statistics[1], "annotated": np.isin(self.annotations, list(prepared.labels)),
        }  # fmt: skip
        for name, value in values.items():
            self.group[name][row] = value
        for column in {*self._participant_columns(), *files.participant}:
            self._write_participant(row, column, files.participant.get(column, ""))

    def _write_participant(self, row: int, column: str, value: str | float) -> None:
        """A value into a participants' column, which begins with its first value; "" and NaN are none."""
        if value == "" or value != value:
            # A row that a dead writer left may hold another patient's value.
            if column in self.group:
                self.group[column][row] = self.group[column].fill_value
        else:
            self._participant_array(column, value)[row] = value

    def _participant_array(self, column: str, value: str | float) -> zarr.Array:
        dtype = "string" if isinstance(value, str) else "float64"
        if column not in self.group:
            variable = schema.Variable(
                ("case",), dtype, "" if dtype == "string" else float("nan"), "participants' column"
            )
            self._create(column, variable, [self.group["status"].shape[0]], [schema.ROWS])
            self._fit_sizes()
        array = self.group[column]
        if (array.dtype.kind == "f") != (dtype == "float64"):
            raise StoreError(
                f"the participants' column {column!r} holds {'numbers' if array.dtype.kind == 'f' else 'text'} "
                f"in the store, but now {value!r}. Write it alike for every case."
            )
        return array

    def _flush(self, row: int) -> None:
        """Push everything of a row from the system's memory to the disk (local stores only)."""
        store = self.group.store_path.store
        if not isinstance(store, zarr.storage.LocalStore):
            return
        base = store.root / self.group.path
        to_sync = {base / "zarr.json"}
        for array in (path for path in base.iterdir() if path.is_dir()):
            alone = array.name in ("image", "label", "foreground")
            block = row if alone else 0 if array.name == "status" else row // schema.ROWS
            chunks = array / "c" / str(block)
            files = [chunks] if chunks.is_file() else [path for path in chunks.rglob("*") if path.is_file()]
            to_sync |= {array / "zarr.json", *files}
            # The folders, too, or a new file's name is lost with the power.
            to_sync |= {folder for path in files for folder in path.parents if folder.is_relative_to(array)}
        for path in to_sync:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def _commit(self, row: int, case: str) -> None:
        """One write of one chunk makes the new row valid and an older row of the same case invalid."""
        status = self.group["status"][:]
        older, _ = self.states().get(case, (row, schema.PENDING))
        self.group["case"][row] = case
        if older != row:
            status[older] = schema.SUPERSEDED
        status[row] = schema.COMMITTED
        self.group["status"][:] = status
        self._flush(row)
        if older != row:
            self.group["case"][older] = ""

    def release_rows(self) -> None:
        """Give back rows at the end that nobody committed."""
        status = self.group["status"][:]
        used = int(np.flatnonzero(status != schema.PENDING).max(initial=-1)) + 1
        if used < len(status):
            for name in [*schema.COORDINATES, *self._participant_columns(), "image", "label"]:
                array = self.group[name]
                if array.metadata.dimension_names[0] == "case":
                    array.resize((used, *array.shape[1:]))
