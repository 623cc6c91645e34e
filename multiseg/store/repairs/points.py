"""Restoring the sampled voxels of a case from its label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.damage import UNREADABLE
from multiseg.store.ingest.encoding import packed_points, points_of
from multiseg.store.ingest.packing import is_sound
from multiseg.store.records import FileMark, Record, record_text
from multiseg.store.repairs.place import Place
from multiseg.store.repairs.row_repair import Rows
from multiseg.store.rows import mark_of
from multiseg.store.shard_names import key_of, shards_named


def repair_points(place: Place, rows: Rows, on_row: Callable[[], None]) -> None:
    """Restore damaged files of "foreground" of all cases whose label is sound; `on_row` is called for each.

    The voxels are sampled with a seed made from the names of case and annotation, so that the files are the same again.
    """
    for row in rows.in_use:
        on_row()
        record, text = rows.records.get(row), str(rows.columns["shards"][row])
        if record is None:  # only replaced versions may have no record here
            continue
        shards = sorted(f"foreground/{position}" for position in shards_named(text, "foreground"))
        keys = {shard: key_of(rows.name, row, shard) for shard in shards}
        bad_keys = {
            shard: key for shard, key in keys.items() if not _is_as_marked(place, key, record.shards.get(shard))
        }
        restored = _from_label(place, rows, row, record) if bad_keys else {}
        for shard, key in bad_keys.items():
            if shard in restored:
                _replace(place, rows, row, shard, restored[shard])
            elif rows.status[row] == schema.COMMITTED:
                why = "the label from which it could be restored is damaged or missing, too"
                place.log.lost(rows.name, record.case, key, why)


def _is_as_marked(place: Place, key: str, mark: FileMark | None) -> bool:
    """Whether a file is sound and the one in the record. A restored record may have the digest of a damaged file."""
    data = place.read(key)
    return data is not None and mark_of(data) == mark and is_sound(data)


def _from_label(place: Place, rows: Rows, row: int, record: Record) -> Mapping[str, bytes]:
    """The files of a row's sampled voxels, from its label; none if the label differs from the record."""
    shards = {shard: mark for shard, mark in record.shards.items() if shard.startswith("label/")}
    if any(mark_of(place.read(key_of(rows.name, row, shard)) or b"") != mark for shard, mark in shards.items()):
        return {}
    attributes = rows.arrays.group.attrs.asdict()
    annotations = list(attributes[schema.NAMED_AXES["annotation"]])
    i, j, k = record.extent
    try:
        schemas = {name: LabelSchema.from_json(attributes["label_schemas"][name]) for name in annotations}
        labels = {
            name: np.asarray(rows.arrays["label"][row, annotations.index(name), :i, :j, :k])
            for name in record.annotations
        }
        counts, points = points_of(record.case, labels, annotations, schemas)
        is_as_recorded = all(
            counts[annotations.index(name), : len(num_voxels)].tolist() == list(num_voxels)
            for name, num_voxels in record.annotations.items()
        )
    except UNREADABLE:
        return {}
    return packed_points(points, rows.arrays["foreground"].chunks[2]) if is_as_recorded else {}


def _replace(place: Place, rows: Rows, row: int, shard: str, data: bytes) -> None:
    """Write a file, and update its mark if the current versions of our libraries compress it differently."""
    record, key = rows.records[row], key_of(rows.name, row, shard)
    place.replace(key, data, f"the sampled voxels of {record.case}, from its label")
    if record.shards.get(shard) != mark_of(data):
        rows.records[row] = replace(record, shards={**record.shards, shard: mark_of(data)})
        rows.arrays.write_row(row, {"record": record_text(rows.records[row])})
        place.log.repaired(f"{rows.name}/record/c/{row}", f"the digest of {key} in the record of {record.case}")
