"""The record of a case: one small text from which its row of every coordinate can be rebuilt."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.shard_names import shards_text
from multiseg.types import Affine, Index3

Rows4: TypeAlias = tuple[tuple[float, ...], ...]
DESCRIPTION = ("subject", "session", "site", "split", "split_given")
"""Metadata of a case that may change after ingest, as the participants' columns may."""
_GEOMETRY = ("extent", "native_shape", "affine", "native_affine")
_TEXTS = ("case", "subject", "session", "site", "split", "source_sha256", "sources")


class Scan(NamedTuple):
    """A sequence's scaling (raw = image * std + mean) and the digest of its voxels."""

    mean: float
    std: float
    content: str


class FileMark(NamedTuple):
    """The length and the SHA-256 of a file.

    A CRC-32C would not do: over parts that each end with their own CRC-32C, it depends only on their lengths.
    """

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """Everything that a store knows of a case, by name instead of by position on an axis.

    Attributes:
        revision: of two records of one case, the one with the larger number is newer.
        sequences: the sequences of the case.
        annotations: its annotations, with the number of voxels of each structure (code - 1).
        shards: its files by array and position, such as "image/0/0/0/0".
        to_template: RAS+ mm of the case to those of the template; None if unknown.
    """

    revision: int
    case: str
    subject: str
    session: str
    site: str
    split: str
    split_given: bool
    extent: Index3
    affine: Rows4
    native_shape: Index3
    native_affine: Rows4
    native_header: bytes
    source_sha256: str
    sources: str
    sequences: Mapping[str, Scan]
    annotations: Mapping[str, tuple[int, ...]]
    participant: Mapping[str, str | float]
    shards: Mapping[str, FileMark]
    to_template: Rows4 | None = None


def record_text(record: Record) -> str:
    """A record as the text that is stored. It names no template where none is known, as before there were any."""
    fields = asdict(record) | {"native_header": base64.b64encode(record.native_header).decode()}
    if record.to_template is None:
        del fields["to_template"]
    return json.dumps(fields)


def parse_record(text: str, file: str) -> Record:
    """Parse the stored text of a record.

    Raises:
        StoreError: it is not a record; the error names `file`.
    """
    try:
        fields = json.loads(text)
        return Record(
            **_plain_fields(fields),
            native_header=base64.b64decode(fields["native_header"], validate=True),
            sequences={str(name): Scan(*scan) for name, scan in fields["sequences"].items()},
            annotations={str(name): tuple(map(int, counts)) for name, counts in fields["annotations"].items()},
            participant=dict(fields["participant"]),
            shards={str(key): FileMark(*mark) for key, mark in fields["shards"].items()},
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise StoreError(f"{file} does not hold a case's record: {error}.", file=file) from error


def coordinates_of(
    record: Record,
    modalities: Sequence[str],
    annotations: Sequence[str],
    columns: Mapping[str, Any],
    num_structures: int,
) -> dict[str, Any]:
    """A case's row of every coordinate except status, foreground and record, from its record.

    Args:
        columns: the participants' columns of the database, with the value for a case that has none.
        num_structures: length of the axis `structure`.

    Raises:
        StoreError: the record names a sequence or an annotation that the database does not have.
    """
    mean, std = np.full(len(modalities), np.nan), np.full(len(modalities), np.nan)
    content = np.full(len(modalities), "", dtype=object)
    for name, scan in record.sequences.items():
        index = _position_of(name, modalities, record)
        mean[index], std[index], content[index] = scan
    counts = np.zeros((len(annotations), num_structures), dtype=np.int64)
    for name, voxels in record.annotations.items():
        counts[_position_of(name, annotations, record), : len(voxels)] = voxels
    header = np.zeros(schema.HEADER_BYTES, dtype=np.uint8)
    header[: len(record.native_header)] = np.frombuffer(record.native_header, dtype=np.uint8)
    participant_values = {name: record.participant.get(name, fill) for name, fill in columns.items()}
    return participant_values | {
        **{name: getattr(record, name) for name in ("case", *DESCRIPTION, "source_sha256", "sources", "revision")},
        **{name: np.array(getattr(record, name), dtype=schema.COORDINATES[name].dtype) for name in _GEOMETRY},
        "native_header": header,
        "to_template": np.full((4, 4), np.nan) if record.to_template is None else np.array(record.to_template),
        "available": np.array([name in record.sequences for name in modalities], dtype=bool),
        "intensity_mean": mean,
        "intensity_std": std,
        "content": content,
        "annotated": np.array([name in record.annotations for name in annotations], dtype=bool),
        "foreground_count": counts,
        "shards": shards_text(record.shards),
    }


def record_of_row(
    row: Mapping[str, Any],
    modalities: Sequence[str],
    annotations: Sequence[str],
    columns: Sequence[str],
    shards: Mapping[str, FileMark],
) -> Record:
    """The record of a row, from its row of each coordinate: the inverse of `coordinates_of`."""
    counts = zip(annotations, row["annotated"], row["foreground_count"], strict=False)
    participant_values = {name: row[name] for name in columns if row[name] == row[name] and row[name] != ""}
    return Record(
        **_plain_fields(row),
        native_header=whole_header(bytes(row["native_header"])),
        sequences={
            name: Scan(
                float(row["intensity_mean"][index]), float(row["intensity_std"][index]), str(row["content"][index])
            )
            for index, name in enumerate(modalities)
            if index < len(row["available"]) and row["available"][index]
        },
        annotations={name: tuple(int(n) for n in voxels) for name, has_it, voxels in counts if has_it},
        participant={
            n: float(value) if isinstance(value, np.floating) else str(value) for n, value in participant_values.items()
        },
        shards=shards,
    )


def whole_header(padded: bytes) -> bytes:
    """A NIfTI header without the padding of its row."""
    size = int.from_bytes(padded[:4], "little")
    size = size if size in (348, 540) else int.from_bytes(padded[:4], "big")
    return padded[:size]


def _plain_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that have the same form in its stored text and in the coordinates."""
    return {
        **{name: str(source[name]) for name in _TEXTS},
        "revision": int(source["revision"]),
        "split_given": bool(source["split_given"]),
        **{name: _index(source[name]) for name in ("extent", "native_shape")},
        **{name: _rows(source[name]) for name in ("affine", "native_affine")},
        "to_template": None if (affine := known_affine(source.get("to_template"))) is None else _rows(affine),
    }


def known_affine(matrix: Any) -> Affine | None:
    """An affine that may be unknown: None, or NaN as in the coordinate."""
    affine = np.asarray(np.nan if matrix is None else matrix, dtype=np.float64)
    return None if np.isnan(affine).any() else affine


def _position_of(name: str, names: Sequence[str], record: Record) -> int:
    if name not in names:
        raise StoreError(f"the record of case {record.case!r} names {name!r}, but the database has only {list(names)}.")
    return names.index(name)


def _index(values: Any) -> Index3:
    i, j, k = (int(n) for n in values)
    return i, j, k


def _rows(matrix: Any) -> Rows4:
    return tuple(tuple(float(value) for value in row) for row in matrix)
