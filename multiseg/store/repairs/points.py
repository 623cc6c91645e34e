"""The sampled voxels of a case, made again from its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.damage import UNREADABLE
from multiseg.store.ingest.encoding import packed_points, points_of
from multiseg.store.ingest.packing import is_sound
from multiseg.store.records import FileMark, Record, record_text
from multiseg.store.repairs.place import Place
from multiseg.store.repairs.repair_report import Log
from multiseg.store.repairs.row_repair import Rows
from multiseg.store.rows import mark_of
from multiseg.store.shard_names import shards_named


def repair_points(place: Place, rows: Rows, log: Log) -> None:
    """Make the files of "foreground" sound, wherever the label of their case is.

    They are drawn with a seed made of the names of case and annotation, so that the same files come out again.
    """
    for row in np.flatnonzero(rows.status != schema.PENDING).tolist():
        record, text = rows.records.get(row), str(rows.columns["shards"][row])
        if record is None:  # only of a replaced version
            continue
        held = {
            f"foreground/{rest}": _key(rows, row, f"foreground/{rest}") for rest in shards_named(text, "foreground")
        }
        bad = {own: key for own, key in held.items() if not _is_as_marked(place, key, record.shards.get(own))}
        if not bad:
            continue
        made = _from_label(place, rows, row, record)
        for own, key in sorted(bad.items()):
            if own in made:
                _replace(place, rows, row, own, made[own], log)
            elif rows.status[row] == schema.COMMITTED:
                log.lost(rows.name, record.case, key, "its label, from which it is made, is damaged or gone, too")


def _key(rows: Rows, row: int, own: str) -> str:
    array, _, rest = own.partition("/")
    return f"{rows.name}/{array}/c/{row}/{rest}"


def _is_as_marked(place: Place, key: str, mark: FileMark | None) -> bool:
    """Whether a file is the one of the record, and sound: a record that was made again was made of what was there."""
    data = place.read(key)
    return data is not None and mark_of(data) == mark and is_sound(data)


def _from_label(place: Place, rows: Rows, row: int, record: Record) -> Mapping[str, bytes]:
    """The files of the row's sampled voxels; none where its label is not the one of the record."""
    shards = {own: mark for own, mark in record.shards.items() if own.startswith("label/")}
    if any(mark_of(place.read(_key(rows, row, own)) or b"") != mark for own, mark in shards.items()):
        return {}
    told = rows.arrays.group.attrs.asdict()
    annotations = list(told[schema.NAMED_AXES["annotation"]])
    i, j, k = record.extent
    try:
        schemas = {name: LabelSchema.from_json(told["label_schemas"][name]) for name in annotations}
        labels = {
            name: np.asarray(rows.arrays["label"][row, annotations.index(name), :i, :j, :k])
            for name in record.annotations
        }
        counts, points = points_of(record.case, labels, annotations, schemas)
        noted = {name: np.array(counts[annotations.index(name), : len(n)]) for name, n in record.annotations.items()}
    except UNREADABLE:
        return {}
    if any(tuple(noted[name].tolist()) != tuple(n) for name, n in record.annotations.items()):
        return {}
    return packed_points(points, rows.arrays["foreground"].chunks[2])


def _replace(place: Place, rows: Rows, row: int, own: str, data: bytes, log: Log) -> None:
    """Write a file and, where other versions of our libraries pack it otherwise, its new mark."""
    record, key = rows.records[row], _key(rows, row, own)
    place.replace(key, data)
    log.repaired(key, f"the sampled voxels of {record.case}, from its label")
    if record.shards.get(own) != mark_of(data):
        rows.records[row] = replace(record, shards={**record.shards, own: mark_of(data)})
        rows.arrays["record"][row] = record_text(rows.records[row])
        log.repaired(f"{rows.name}/record/c/{row}", f"the mark of this file in the record of {record.case}")
