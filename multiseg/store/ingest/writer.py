"""Writing a database: rows reserved first, arrays written, and a row committed last, when all is on the disk.

A reader trusts only rows whose status says committed. A writer that dies leaves a pending row, which the
next one takes up again; a case that is replaced gets a new row, and the old one stays until then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from multiseg.errors import ResourceError
from multiseg.faults import remedy
from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.cases import CaseFiles
from multiseg.store.columns import check_axis_names, watch
from multiseg.store.durable import gather, sync_names
from multiseg.store.hierarchy import ROOT_KEY
from multiseg.store.ingest.encoding import ArrayPlan, EncodedCase
from multiseg.store.root import DatabaseInfo, check_agreement
from multiseg.store.rows import describe_row, finish_descriptions, next_revision, record_of, write_record


def plan_arrays(group: zarr.Group | None, info: DatabaseInfo, modalities: Sequence[str]) -> ArrayPlan:
    """How a database's arrays are cut: as they were made, with new names at the end of their axes."""
    held = {} if group is None else group.attrs.asdict()
    kept = {name: LabelSchema.from_json(labels) for name, labels in held.get("label_schemas", {}).items()}
    schemas = kept | dict(info.schemas)
    names: dict[str, list[str]] = {}
    for axis, new in (("modality", modalities), ("annotation", schemas)):
        there = held.get(schema.NAMED_AXES[axis], [])
        names[axis] = there + [name for name in new if name not in there]
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
    """One database open for writing: rows are reserved for cases, and each is written and then committed.

    Raises:
        StoreError: the database exists with another recipe, codec or meaning of codes; or a file of it is not there.
    """

    def __init__(self, root: zarr.Group, info: DatabaseInfo, plan: ArrayPlan) -> None:
        gather(root)
        if info.name not in root:
            root.create_group(info.name, attributes=info.to_attributes())
        self.group: zarr.Group = root[info.name]
        self.info = info
        self.plan = plan
        if info.name in root.attrs[ROOT_KEY]["databases"]:
            watch(self.group)
            check_axis_names(self.group)
        self.arrays = DatabaseArrays(self.group)
        # Rows of committed cases and the states of all rows, read once: whoever writes is alone.
        self._committed: dict[str, int] | None = None
        self._status = np.zeros(0, dtype=np.uint8)
        self._agree_on_attributes()
        self.arrays.require(plan)
        self.arrays.grow_names("modality", plan.modalities)
        self.arrays.grow_names("annotation", plan.annotations)
        self.arrays.fit(plan)
        self.arrays.keep_copy()
        finish_descriptions(self.arrays)
        self._name_in_root(root)

    def _name_in_root(self, root: zarr.Group) -> None:
        """Readers go by the root's list; this database is in it from when all of its arrays are there."""
        head = root.attrs[ROOT_KEY]
        if self.info.name not in head["databases"]:
            status = self.arrays["status"]
            status[:] = status[:]  # its chunk is there from now on
            root.attrs[ROOT_KEY] = head | {"databases": [*head["databases"], self.info.name]}
            watch(self.group)

    def _agree_on_attributes(self) -> None:
        held, asked = self.group.attrs.asdict(), self.info.to_attributes()
        check_agreement(held, self.info)
        said = {key: value for key, value in asked.items() if value and key != "label_schemas"}
        said["label_schemas"] = held["label_schemas"] | asked["label_schemas"]
        if held | said != held:
            self.group.attrs.update(said)

    def states(self) -> dict[str, tuple[int, int]]:
        """Row and state of every case that has a row; a committed row goes before a pending one."""
        names, status = self.arrays["case"][:], self.arrays["status"][:]
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
        names, status = self.arrays["case"][:], self.arrays["status"][:]
        pending = [int(row) for row in np.flatnonzero(status == schema.PENDING)]
        # A writer that died just before a commit leaves one of that name beside the committed row.
        own = {str(names[row]): row for row in reversed(pending) if names[row]}
        rows = {case: own[case] for case in cases if case in own}
        taken = set(rows.values())
        free = [row for row in pending if row not in taken]
        missing = [case for case in cases if case not in rows]
        new = range(len(names), len(names) + max(0, len(missing) - len(free)))
        self.arrays.fit(self.plan, num_rows=len(names) + len(new))
        rows |= dict(zip(missing, [*free, *new], strict=False))
        names = self.arrays["case"][:]
        names[np.flatnonzero(status == schema.SUPERSEDED)] = ""
        for case, row in rows.items():
            # Beside a committed row of its own, a new one stays nameless until it is committed.
            names[row] = "" if states.get(case, (0, -1))[1] == schema.COMMITTED else case
        self.arrays["case"][:] = names
        self._committed = None
        return rows

    def write(self, row: int, files: CaseFiles, encoded: EncodedCase) -> None:
        """Write a case into its row and commit it, when all of it is on the disk. Until the last step nobody sees it.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        try:
            self.arrays.fit(self.plan, encoded.grid.shape)
            self._write_shards(row, encoded)
            own, revision = self._participant(files), next_revision(self.arrays, files.case)
            write_record(self.arrays, row, record_of(files, encoded, self.plan.annotations, own, revision))
            self._commit(row, files.case)
        except ResourceError as error:  # says itself what to do
            raise ResourceError(f"case {files.case!r} is not in the store: {error}") from error
        except OSError as error:
            raise ResourceError(
                f"case {files.case!r} could not be written: {error}. It is not in the store; what was committed "
                f"is safe. {remedy(error, 'Check the disk.')} Then run the same command again."
            ) from error

    def _write_shards(self, row: int, encoded: EncodedCase) -> None:
        store, prefix = self.group.store_path.store, self.group.path
        for name in schema.BY_CASE:
            # What a dead writer left in this row must not show beside a smaller case.
            sync(store.delete_dir(f"{prefix}/{name}/c/{row}"))
        buffer = default_buffer_prototype().buffer
        for key, data in encoded.shards.items():
            array, _, place = key.partition("/")
            sync(store.set(f"{prefix}/{array}/c/{row}/{place}", buffer.from_bytes(data)))

    def _participant(self, files: CaseFiles) -> dict[str, str | float]:
        """The values of a case as the participants' columns hold them; columns that are new are made."""
        known = {column: value for column, value in files.participant.items() if value != "" and value == value}
        return {column: self.arrays.require_column(column, known[column]) for column in sorted(known)}

    def describe(self, row: int, files: CaseFiles) -> None:
        """Write again, and to the disk, what is known of a case in the store beside its scans."""
        # A split that was given stays so, whatever is described.
        was_given = bool(self.arrays["split_given"][row])
        describe_row(
            self.arrays, row, subject=files.person, session=files.session, site=files.site, split=files.split,
            split_given=files.split_given or was_given, participant=self._participant(files),
        )  # fmt: skip
        sync_names(self.group)

    def _commit(self, row: int, case: str) -> None:
        """One write of one chunk makes the new row valid and an older row of the same case invalid."""
        if self._committed is None:
            states = self.states()
            self._committed = {name: at for name, (at, state) in states.items() if state == schema.COMMITTED}
            self._status = self.arrays["status"][:]
        status = self._status.copy()
        older = self._committed.get(case, row)
        replaces = older != row
        self.arrays["case"][row] = case
        if replaces:
            status[older] = schema.SUPERSEDED
        status[row] = schema.COMMITTED
        # A local store puts all that was written before onto the disk first, and this with its name at once.
        self.arrays["status"][:] = status
        self._status = status
        self._committed[case] = row
        if replaces:
            sync_names(self.group)  # a case that is still valid keeps its name
            self.arrays["case"][older] = ""

    def release_rows(self) -> None:
        """Give back rows that nobody committed: those at the end go, and the others lose their case's name.

        A pending row with a name is one whose writer is at work or died; that of a case which was refused is free.
        """
        status, names = self.arrays["status"][:], self.arrays["case"][:]
        refused = (status == schema.PENDING) & np.array([bool(str(name)) for name in names], dtype=bool)
        if refused.any():
            names[refused] = ""
            self.arrays["case"][:] = names
        self._committed = None
        used = max(1, int(np.flatnonzero(status != schema.PENDING).max(initial=-1)) + 1)
        if used < len(status):
            self.arrays.set_rows(used)
        sync_names(self.group)
