"""One row of a database: its record, and the coordinates that say the same, always changed together."""

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
from multiseg.store.durable import sync_names
from multiseg.store.ingest.encoding import EncodedCase
from multiseg.store.records import DESCRIPTION, FileMark, Record, Scan, coordinates_of, parse_record, record_text


def digest_of_sources(sources: Sequence[Mapping[str, Any]]) -> str:
    """One digest over the sha256 of every source by its role."""
    return digest_of_roles({source["role"]: source["sha256"] for source in sources})


def digest_of_roles(hashes: Mapping[str, str]) -> str:
    """One digest over the sha256 of every file by its role."""
    lines = "".join(f"{role}:{sha256}\n" for role, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def record_of(
    files: CaseFiles,
    encoded: EncodedCase,
    annotations: Sequence[str],
    participant: Mapping[str, str | float],
    revision: int,
) -> Record:
    """The record of a case that is about to be written; `annotations` are those of its plan, `participant` the
    values as their columns hold them.
    """
    scans = zip(encoded.modalities, encoded.mean, encoded.std, encoded.content, strict=True)
    counts = encoded.foreground_count
    annotated = {name: annotations.index(name) for name in encoded.labels}
    return Record(
        revision=revision, case=files.case, subject=files.person, session=files.session, site=files.site,
        split=files.split, split_given=files.split_given, extent=encoded.grid.shape,
        affine=_rows(encoded.grid.affine), native_shape=encoded.native.shape,
        native_affine=_rows(encoded.native.affine), native_header=encoded.native_header,
        source_sha256=digest_of_sources(encoded.sources), sources=json.dumps(encoded.sources),
        sequences={name: Scan(float(mean), float(std), content) for name, mean, std, content in scans},
        annotations={name: tuple(counts[at].tolist()) for name, at in annotated.items()},
        participant=dict(participant),
        shards={key: mark_of(data) for key, data in encoded.shards.items()},
    )  # fmt: skip


def mark_of(data: bytes | memoryview) -> FileMark:
    """The length and the digest of a file."""
    return FileMark(len(data), hashlib.sha256(data).hexdigest())


def _rows(affine: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in affine)


_OF_ALL = ""


def next_revision(arrays: DatabaseArrays, case: str) -> int:
    """A number greater than those of all rows at the start, and than this writer's own of the case.

    It does not depend on the order in which cases are written, so that any number of workers makes the same store.
    """
    held = arrays.revisions
    if _OF_ALL not in held:  # read once, since whoever writes is alone; no case has an empty name
        held[_OF_ALL] = int(np.abs(arrays["revision"][:]).max(initial=0))
    held[case] = max(held[_OF_ALL], held.get(case, 0)) + 1
    return held[case]


def write_record(arrays: DatabaseArrays, row: int, record: Record) -> None:
    """Write the coordinates of a row that nobody sees yet, and its record last; the name comes with the commit."""
    values = row_values(arrays, record)
    del values["case"]
    arrays.write_row(row, values)
    arrays["record"][row] = record_text(record)


def row_values(arrays: DatabaseArrays, record: Record) -> dict[str, Any]:
    """What the coordinates hold of a record."""
    columns = {name: arrays[name].fill_value for name in arrays.columns}
    told = arrays.group.attrs.asdict()
    return coordinates_of(record, told["modalities"], told["annotations"], columns, told[schema.NUM_STRUCTURES])


def describe_row(arrays: DatabaseArrays, row: int, **changes: Any) -> None:
    """Change what is known of a committed case: fields of its `Record` by name.

    While its coordinates are written the row's revision is negative. A writer that dies leaves it so, and
    `finish_descriptions` of the next one writes the coordinates from the record, the old or the new one.
    """
    before = read_record(arrays, row)
    record = replace(before, revision=next_revision(arrays, before.case), **changes)
    held, values = row_values(arrays, before), row_values(arrays, record)
    is_unfinished = arrays["revision"][row] < 0
    arrays["revision"][row] = -record.revision
    sync_names(arrays.group)
    arrays["record"][row] = record_text(record)
    sync_names(arrays.group)
    changeable = (*DESCRIPTION, *arrays.columns)
    changed = [name for name in changeable if is_unfinished or not _same(held[name], values[name])]
    arrays.write_row(row, {name: values[name] for name in changed})
    sync_names(arrays.group)
    arrays["revision"][row] = record.revision


def finish_descriptions(arrays: DatabaseArrays) -> None:
    """Write the coordinates of those rows whose writer died while it changed them."""
    in_change = (arrays["revision"][:] < 0) & (arrays["status"][:] == schema.COMMITTED)
    for row in np.flatnonzero(in_change):
        record = read_record(arrays, int(row))
        values = row_values(arrays, record)
        arrays.write_row(int(row), {name: values[name] for name in (*DESCRIPTION, *arrays.columns)})
        sync_names(arrays.group)
        arrays["revision"][row] = record.revision


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))


def read_record(arrays: DatabaseArrays, row: int) -> Record:
    """The record of a row.

    Raises:
        StoreError: it is not there, or is none.
    """
    return parse_record(str(arrays["record"][row]), f"{arrays.group.path}/record/c/{row}")
