"""The record of a case: one small text from which all that the coordinates say of it can be made again."""

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
from multiseg.types import Index3

Rows4: TypeAlias = tuple[tuple[float, ...], ...]
DESCRIPTION = ("subject", "session", "site", "split", "split_given")
"""What is known of a case beside its scans, and may change; so may the participants' columns."""
_TEXTS = ("case", "subject", "session", "site", "split", "source_sha256", "sources")


class Scan(NamedTuple):
    """Of a sequence: raw = image * std + mean, and the digest of its voxels."""

    mean: float
    std: float
    content: str


class FileMark(NamedTuple):
    """How long a file is, and its SHA-256. (The CRC-32C of parts that each end with their own depends on nothing but
    their lengths.)"""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """All that a store says of a case, by name and not by the place on an axis.

    Attributes:
        revision: of two records of one case, the one with the greater number is newer.
        sequences: those that the case has.
        annotations: those that it has, with the voxels of each structure (code - 1).
        shards: its files by array and place, such as "image/0/0/0/0".
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


def record_text(record: Record) -> str:
    """A record as it is stored."""
    return json.dumps(asdict(record) | {"native_header": base64.b64encode(record.native_header).decode()})


def parse_record(text: str, file: str) -> Record:
    """The record of a stored text.

    Raises:
        StoreError: it is none; `file` is named.
    """
    try:
        held = json.loads(text)
        return Record(
            **_plain_fields(held),
            native_header=base64.b64decode(held["native_header"], validate=True),
            sequences={str(name): Scan(*scan) for name, scan in held["sequences"].items()},
            annotations={str(name): tuple(map(int, counts)) for name, counts in held["annotations"].items()},
            participant=dict(held["participant"]),
            shards={str(key): FileMark(*mark) for key, mark in held["shards"].items()},
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise StoreError(f"{file} holds no record of a case: {error}.", file=file) from error


def coordinates_of(
    record: Record, modalities: Sequence[str], annotations: Sequence[str], columns: Mapping[str, Any], structures: int
) -> dict[str, Any]:
    """The row of every coordinate that a record tells, that is of all but status, foreground and the record itself.

    Args:
        columns: the participants' columns of the database, with what stands where a case has no value.
        structures: length of that axis.

    Raises:
        StoreError: the record names a sequence or an annotation that the database has not.
    """
    mean, std = np.full(len(modalities), np.nan), np.full(len(modalities), np.nan)
    content = np.full(len(modalities), "", dtype=object)
    for name, scan in record.sequences.items():
        at = _place(name, modalities, record)
        mean[at], std[at], content[at] = scan
    counts = np.zeros((len(annotations), structures), dtype=np.int64)
    for name, found in record.annotations.items():
        counts[_place(name, annotations, record), : len(found)] = found
    header = np.zeros(schema.HEADER_BYTES, dtype=np.uint8)
    header[: len(record.native_header)] = np.frombuffer(record.native_header, dtype=np.uint8)
    own = {name: record.participant.get(name, nothing) for name, nothing in columns.items()}
    return own | {
        **{name: getattr(record, name) for name in ("case", *DESCRIPTION, "source_sha256", "sources", "revision")},
        "extent": np.array(record.extent, dtype=np.int32),
        "native_shape": np.array(record.native_shape, dtype=np.int32),
        "affine": np.array(record.affine, dtype=np.float64),
        "native_affine": np.array(record.native_affine, dtype=np.float64),
        "native_header": header,
        "available": np.array([name in record.sequences for name in modalities], dtype=bool),
        "intensity_mean": mean,
        "intensity_std": std,
        "content": content,
        "annotated": np.array([name in record.annotations for name in annotations], dtype=bool),
        "foreground_count": counts,
        "shards": shards_text(record.shards),
    }


def record_of_row(
    held: Mapping[str, Any],
    modalities: Sequence[str],
    annotations: Sequence[str],
    columns: Sequence[str],
    shards: Mapping[str, FileMark],
) -> Record:
    """The record of a row from its coordinates: the inverse of `coordinates_of`."""
    counts = zip(annotations, held["annotated"], held["foreground_count"], strict=False)
    own = {name: held[name] for name in columns if held[name] == held[name] and held[name] != ""}
    return Record(
        **_plain_fields(held),
        native_header=whole_header(bytes(held["native_header"])),
        sequences={
            name: Scan(float(held["intensity_mean"][at]), float(held["intensity_std"][at]), str(held["content"][at]))
            for at, name in enumerate(modalities)
            if at < len(held["available"]) and held["available"][at]
        },
        annotations={name: tuple(int(n) for n in found) for name, there, found in counts if there},
        participant={n: float(value) if isinstance(value, np.floating) else str(value) for n, value in own.items()},
        shards=shards,
    )


def whole_header(padded: bytes) -> bytes:
    """A NIfTI header without what fills its row up."""
    size = int.from_bytes(padded[:4], "little")
    size = size if size in (348, 540) else int.from_bytes(padded[:4], "big")
    return padded[:size]


def _plain_fields(held: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that a stored text and a row of the coordinates hold alike."""
    return {
        **{name: str(held[name]) for name in _TEXTS},
        "revision": int(held["revision"]),
        "split_given": bool(held["split_given"]),
        **{name: _index(held[name]) for name in ("extent", "native_shape")},
        **{name: _rows(held[name]) for name in ("affine", "native_affine")},
    }


def _place(name: str, names: Sequence[str], record: Record) -> int:
    if name not in names:
        raise StoreError(f"the record of case {record.case!r} names {name!r}, but the database has {list(names)}.")
    return names.index(name)


def _index(held: Any) -> Index3:
    i, j, k = (int(n) for n in held)
    return i, j, k


def _rows(held: Any) -> Rows4:
    return tuple(tuple(float(value) for value in row) for row in held)
