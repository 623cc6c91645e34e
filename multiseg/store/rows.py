"""One row of a database: its record and its coordinates, which hold the same and always change together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.cases import CaseFiles
from multiseg.store.columns import are_equal
from multiseg.store.durable import sync_names
from multiseg.store.ingest.encoding import EncodedCase
from multiseg.store.records import DESCRIPTION, FileMark, Record, Scan, coordinates_of, parse_record, record_text

RATER = "rater"
"""The key, in the provenance of a corrected mask, of who corrected it."""


def digest_of_sources(sources: Sequence[Mapping[str, Any]]) -> str:
    """One digest over the roles and sha256 of all sources but corrections.

    By it ingest tells whether the files of a case have changed, and a correction is none of them.
    """
    return digest_of_roles({source["role"]: source["sha256"] for source in sources if RATER not in source})


def digest_of_roles(hashes: Mapping[str, str]) -> str:
    """One digest over the sha256 of all files, given by role."""
    lines = "".join(f"{role}:{sha256}\n" for role, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def record_of(
    files: CaseFiles,
    encoded: EncodedCase,
    annotations: Sequence[str],
    participant: Mapping[str, str | float],
    revision: int,
) -> Record:
    """The record of a case that is about to be written.

    Args:
        annotations: the annotations of its plan.
        participant: the values in the types of their columns.
    """
    scans = zip(encoded.modalities, encoded.mean, encoded.std, encoded.content, strict=True)
    counts = encoded.foreground_count
    annotated = {name: annotations.index(name) for name in encoded.labels}
    return Record(
        revision=revision, case=files.case, subject=files.person, session=files.session, site=files.site,
        split=files.split, split_given=files.split_given, extent=encoded.grid.shape,
        affine=tuple(map(tuple, encoded.grid.affine.tolist())), native_shape=encoded.native.shape,
        native_affine=tuple(map(tuple, encoded.native.affine.tolist())), native_header=encoded.native_header,
        source_sha256=digest_of_sources(encoded.sources), sources=json.dumps(encoded.sources),
        sequences={name: Scan(float(mean), float(std), content) for name, mean, std, content in scans},
        annotations={name: tuple(counts[position].tolist()) for name, position in annotated.items()},
        participant=dict(participant),
        shards={key: mark_of(data) for key, data in encoded.shards.items()},
        to_template=None if encoded.to_template is None else tuple(map(tuple, encoded.to_template.tolist())),
    )  # fmt: skip


def mark_of(data: bytes | memoryview) -> FileMark:
    """The length and SHA-256 of a file."""
    return FileMark(len(data), hashlib.sha256(data).hexdigest())


_ALL_CASES = ""  # no case has an empty name


def next_revision(arrays: DatabaseArrays, case: str) -> int:
    """A revision larger than those of all rows when this writer began, and than its earlier ones for the case.

    It does not depend on the order in which cases are written, so that the store is the same for any number of workers.
    """
    by_case = arrays.revisions
    if _ALL_CASES not in by_case:  # read only once, since there are no other writers
        by_case[_ALL_CASES] = int(np.abs(arrays.read("revision")).max(initial=0))
    by_case[case] = max(by_case[_ALL_CASES], by_case.get(case, 0)) + 1
    return by_case[case]


def write_record(arrays: DatabaseArrays, row: int, record: Record) -> None:
    """Write an uncommitted row: first its coordinates, then its record. The commit writes the name."""
    values = row_values(arrays, record)
    del values["case"]
    arrays.write_row(row, values)
    arrays.write_row(row, {"record": record_text(record)})


def row_values(arrays: DatabaseArrays, record: Record) -> dict[str, Any]:
    """A record's row of each coordinate that the database has."""
    columns = {name: arrays[name].fill_value for name in arrays.columns}
    attributes = arrays.group.attrs.asdict()
    values = coordinates_of(
        record, attributes["modalities"], attributes["annotations"], columns, attributes[schema.NUM_STRUCTURES]
    )
    names = {*schema.coordinates_of_database(attributes), *columns}
    return {name: value for name, value in values.items() if name in names}


def describe_row(arrays: DatabaseArrays, row: int, **changes: Any) -> None:
    """Change the metadata of a committed case: fields of its `Record` by name.

    The row's revision is negative while its coordinates are written, and stays so if the writer dies. The next writer's
    `finish_descriptions` then writes the coordinates from the record, whether that is the old or the new one.
    """
    before = read_record(arrays, row)
    record = replace(before, revision=next_revision(arrays, before.case), **changes)
    old_values, new_values = row_values(arrays, before), row_values(arrays, record)
    is_unfinished = arrays.row("revision", row) < 0
    arrays.write_row(row, {"revision": -record.revision})
    sync_names(arrays.group)
    arrays.write_row(row, {"record": record_text(record)})
    sync_names(arrays.group)
    changeable = (*DESCRIPTION, *arrays.columns)
    changed = [name for name in changeable if is_unfinished or not are_equal(old_values[name], new_values[name])]
    arrays.write_row(row, {name: new_values[name] for name in changed})
    sync_names(arrays.group)
    arrays.write_row(row, {"revision": record.revision})


def finish_descriptions(arrays: DatabaseArrays) -> None:
    """Write the coordinates of rows whose writer died while it changed them."""
    is_unfinished = (arrays.read("revision") < 0) & (arrays.read("status") == schema.COMMITTED)
    for row in np.flatnonzero(is_unfinished):
        record = read_record(arrays, int(row))
        values = row_values(arrays, record)
        arrays.write_row(int(row), {name: values[name] for name in (*DESCRIPTION, *arrays.columns)})
        sync_names(arrays.group)
        arrays.write_row(int(row), {"revision": record.revision})


def read_record(arrays: DatabaseArrays, row: int) -> Record:
    """The record of a row.

    Raises:
        StoreError: it is missing, or not a record.
    """
    return parse_record(str(arrays.row("record", row)), f"{arrays.group.path}/record/c/{row}")
