"""Writing a database: first reserve rows, then write a case's arrays, and commit its row when all is on the disk.

A reader trusts only rows whose status is committed. A writer that dies leaves a pending row, which the next writer
uses. A replaced case gets a new row, and its old row stays valid until the new one is committed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zarr
from zarr.core.sync import sync

from multiseg.errors import ResourceError
from multiseg.faults import remedy
from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.cases import CaseFiles
from multiseg.store.columns import check_axis_names, watch
from multiseg.store.durable import gather, sync_names
from multiseg.store.hierarchy import ROOT_KEY, open_group, write_object
from multiseg.store.ingest.encoding import ArrayPlan, EncodedCase
from multiseg.store.root import DatabaseInfo, check_agreement
from multiseg.store.rows import describe_row, finish_descriptions, next_revision, record_of, write_record
from multiseg.store.shard_names import key_of


def plan_arrays(group: zarr.Group | None, info: DatabaseInfo, modalities: Sequence[str]) -> ArrayPlan:
    """The layout of a database's arrays: that of the existing arrays, with new names appended to their axes."""
    attributes = {} if group is None else group.attrs.asdict()
    stored = {name: LabelSchema.from_json(labels) for name, labels in attributes.get("label_schemas", {}).items()}
    schemas = stored | dict(info.schemas)
    names: dict[str, list[str]] = {}
    for axis, new in (("modality", modalities), ("annotation", schemas)):
        stored_names = attributes.get(schema.NAMED_AXES[axis], [])
        names[axis] = stored_names + [name for name in new if name not in stored_names]
    image, label, foreground = (group.get(name) if group is not None else None for name in schema.BY_CASE)
    num_structures = max((len(schemas[name].structures) for name in names["annotation"]), default=0)
    return ArrayPlan(
        modalities=tuple(names["modality"]),
        annotations=tuple(names["annotation"]),
        schemas={name: schemas[name] for name in names["annotation"]},
        modality_chunk=len(names["modality"]) if image is None else image.chunks[1],
        annotation_shard=max(1, len(names["annotation"])) if label is None else label.shards[1],
        codec=info.codec,
        structure_chunk=max(1, num_structures) if foreground is None else foreground.chunks[2],
    )


class DatabaseWriter:
    """One database open for writing: reserve rows for cases, then write and commit each.

    Args:
        num_rows: the rows that a new database is created with.

    Raises:
        StoreError: the database exists with another recipe, codec or meaning of codes; or one of its files is missing.
    """

    def __init__(self, root: zarr.Group, info: DatabaseInfo, plan: ArrayPlan, num_rows: int = 1) -> None:
        gather(root)
        if info.name not in root:
            root.create_group(info.name, attributes=info.to_attributes())
        self.group = open_group(root.store_path, info.name)
        self.info, self.plan = info, plan
        if info.name in root.attrs[ROOT_KEY]["databases"]:
            watch(self.group)
            check_axis_names(self.group)
        self.arrays = DatabaseArrays(self.group)
        # Rows of committed cases and the states of all rows; read only once, since there are no other writers.
        self._committed: dict[str, int] | None = None
        self._status = np.zeros(0, dtype=np.uint8)
        self._update_attributes()
        self.arrays.require(plan, num_rows)
        if info.template:
            self.arrays.require_template(info.template.to_json())
        self.arrays.grow_names("modality", plan.modalities)
        self.arrays.grow_names("annotation", plan.annotations)
        self.arrays.fit(plan)
        self.arrays.keep_copy()
        finish_descriptions(self.arrays)
        self._name_in_root(root)

    def _name_in_root(self, root: zarr.Group) -> None:
        """Add the database to the root's list, by which readers find it. Call it only when all arrays exist."""
        head = root.attrs[ROOT_KEY]
        if self.info.name not in head["databases"]:
            self.arrays.write("status", self.arrays.read("status"))  # so that its chunk exists
            root.attrs[ROOT_KEY] = head | {"databases": [*head["databases"], self.info.name]}
            watch(self.group)

    def _update_attributes(self) -> None:
        """Update the database's attributes from its settings; an empty setting keeps the stored value."""
        stored, new = self.group.attrs.asdict(), self.info.to_attributes()
        check_agreement(stored, self.info)
        updated = stored | {key: value for key, value in new.items() if value}
        updated["label_schemas"] = stored["label_schemas"] | new["label_schemas"]
        if updated != stored:
            self.group.attrs.update(updated)

    def states(self) -> dict[str, tuple[int, int]]:
        """Row and state of every case that has a row; a committed row takes precedence over a pending one."""
        names, status = self.arrays.read("case"), self.arrays.read("status")
        found: dict[str, tuple[int, int]] = {}
        for row, (name, state) in enumerate(zip(map(str, names), status, strict=True)):
            if name and state != schema.SUPERSEDED and (name not in found or state == schema.COMMITTED):
                found[name] = (row, int(state))
        return found

    def reserve(self, cases: Sequence[str]) -> dict[str, int]:
        """Reserve a row for each case to be written: its own pending row, else a free one, else a new one.

        Committed and superseded rows are not touched, since readers may be using them. Only the name of a superseded
        row is cleared, in case a writer died before it did so.
        """
        states = self.states()
        names, status = self.arrays.read("case"), self.arrays.read("status")
        pending = [int(row) for row in np.flatnonzero(status == schema.PENDING)]
        # A writer that died just before a commit leaves a pending row with the same name as the committed one.
        pending_rows = {str(names[row]): row for row in reversed(pending) if names[row]}
        rows = {case: pending_rows[case] for case in cases if case in pending_rows}
        taken = set(rows.values())
        free = [row for row in pending if row not in taken]
        missing = [case for case in cases if case not in rows]
        new = range(len(names), len(names) + max(0, len(missing) - len(free)))
        self.arrays.fit(self.plan, num_rows=len(names) + len(new))
        rows |= dict(zip(missing, [*free, *new], strict=False))
        names = self.arrays.read("case")
        names[np.flatnonzero(status == schema.SUPERSEDED)] = ""
        for case, row in rows.items():
            # A case with a committed row gets no name in its new row before that is committed.
            names[row] = "" if states.get(case, (0, -1))[1] == schema.COMMITTED else case
        self.arrays.write("case", names)
        self._committed = None
        return rows

    def write(self, row: int, files: CaseFiles, encoded: EncodedCase) -> None:
        """Write a case into its row, and commit it when all of it is on the disk. Readers see it only then.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        try:
            self.arrays.fit(self.plan, encoded.grid.shape)
            self._write_shards(row, encoded)
            participant, revision = self._participant(files), next_revision(self.arrays, files.case)
            write_record(self.arrays, row, record_of(files, encoded, self.plan.annotations, participant, revision))
            self._commit(row, files.case)
        except ResourceError as error:  # its message says what to do
            raise ResourceError(f"case {files.case!r} is not in the store: {error}") from error
        except OSError as error:
            raise ResourceError(
                f"case {files.case!r} could not be written: {error}. It is not in the store; what was committed "
                f"is safe. {remedy(error, 'Check the disk.')} Then run the same command again."
            ) from error

    def _write_shards(self, row: int, encoded: EncodedCase) -> None:
        store, prefix = self.group.store_path.store, self.group.path
        for name in schema.BY_CASE:
            # Remove what a dead writer left in this row: a smaller case would not overwrite all of it.
            sync(store.delete_dir(f"{prefix}/{name}/c/{row}"))
        for shard, data in encoded.shards.items():  # one after another: they may be large
            write_object(store, key_of(prefix, row, shard), data)

    def _participant(self, files: CaseFiles) -> dict[str, str | float]:
        """A case's values in the types of their participants' columns. New columns are created."""
        given = {column: value for column, value in files.participant.items() if value != "" and value == value}
        return {column: self.arrays.require_column(column, given[column]) for column in sorted(given)}

    def describe(self, row: int, files: CaseFiles) -> None:
        """Update the metadata of a case that is in the store, and flush them to the disk."""
        # A given split stays a given one.
        was_given = bool(self.arrays.row("split_given", row))
        describe_row(
            self.arrays, row, subject=files.person, session=files.session, site=files.site, split=files.split,
            split_given=files.split_given or was_given, participant=self._participant(files),
        )  # fmt: skip
        sync_names(self.group)

    def _commit(self, row: int, case: str) -> None:
        """Make the new row of a case valid and its older row invalid, by writing a single chunk."""
        if self._committed is None:
            states = self.states().items()
            self._committed = {name: its_row for name, (its_row, state) in states if state == schema.COMMITTED}
            self._status = self.arrays.read("status")
        status = self._status.copy()
        old_row = self._committed.get(case, row)
        self.arrays.write_row(row, {"case": case})
        status[old_row] = schema.SUPERSEDED
        status[row] = schema.COMMITTED
        # A local store first flushes everything written before to the disk, and then writes and flushes this chunk.
        self.arrays.write("status", status)
        self._status = status
        self._committed[case] = row
        if old_row != row:
            sync_names(self.group)  # a row keeps its name as long as it is valid
            self.arrays.write_row(old_row, {"case": ""})

    def release_rows(self) -> None:
        """Free the reserved rows that were not committed: remove those at the end, and clear the names of the others.

        A pending row with a name would mean that its writer is at work or has died. The row of a failed case is free.
        """
        status, names = self.arrays.read("status"), self.arrays.read("case")
        failed = (status == schema.PENDING) & np.array([bool(str(name)) for name in names], dtype=bool)
        if failed.any():
            names[failed] = ""
            self.arrays.write("case", names)
        self._committed = None
        num_used = max(1, int(np.flatnonzero(status != schema.PENDING).max(initial=-1)) + 1)
        if num_used < len(status):
            self.arrays.set_rows(num_used)
        sync_names(self.group)
