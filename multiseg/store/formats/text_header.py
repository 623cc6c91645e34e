"""The text header of MetaImage and NRRD files: its fields, and the files that contain the voxels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

HEAD_BYTES = 1 << 20
"""No header is longer, even with lists of files and gradients."""
_META_DATA = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]*?)[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, eq=False)
class TextHeader:
    """A header of either format.

    Attributes:
        sizes: of the file's axes, fastest first, including an axis of colours or channels.
        space_axes: the axes that are i, j and k.
        directions: the step of a voxel along i, j and k, as columns in RAS+.
        encoding: "raw", "zlib", "gzip" or "bzip2".
        line_skip, byte_skip: lines and bytes before the voxels; -1 bytes: the voxels are at the end of the file.
        why_unplaced: why left and right follow a convention; "" if the header gives them.
        is_sized: whether the header gives the voxel size; otherwise 1 mm is assumed.
    """

    sizes: tuple[int, ...]
    space_axes: tuple[int, ...]
    dtype: np.dtype
    directions: Float[np.ndarray, "3 3"]
    origin: Float[np.ndarray, 3]
    encoding: str
    line_skip: int = 0
    byte_skip: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    units: frozenset[str] = frozenset()
    is_coloured: bool = False
    is_complex: bool = False
    why_unplaced: str = ""
    is_sized: bool = True


def is_nrrd(data: bytes) -> bool:
    """Whether a file begins as NRRD files do."""
    return data[:7] == b"NRRD000"


def is_metaimage(data: bytes) -> bool:
    """Whether a file begins as MetaImage files do."""
    is_text = re.match(rb"\s*[A-Z]\w+[ \t]*=", data[:200]) is not None
    return is_text and _META_DATA.search(data[:HEAD_BYTES]) is not None


def fields_of(data: bytes) -> dict[str, str]:
    """The fields of a header by their lower-case names; empty for a file of another format."""
    if not (is_nrrd(data) or is_metaimage(data)):
        return {}
    line = r"^([^:#\n]+):=?[ \t]*(.*?)\s*$" if is_nrrd(data) else r"^(\w+)[ \t]*=[ \t]*(.*?)\s*$"
    fields = re.findall(line, _text(data[: voxels_start(data)]), re.MULTILINE)
    return {key.strip().lower(): value for key, value in fields}


def numbers(text: str) -> tuple[float, ...]:
    """Finite numbers separated by spaces.

    Raises:
        ValueError: there is none, or a part is not a finite number.
    """
    values = tuple(float(part) for part in text.split())
    if not values or not np.isfinite(values).all():
        raise ValueError(f"{text!r} must be finite numbers")
    return values


def whole_numbers(fields: Mapping[str, str], name: str, default: str = "") -> tuple[int, ...]:
    """The positive whole numbers of a field.

    Raises:
        ValueError: the field is missing or contains something else.
    """
    parts = fields.get(name, default).split()
    if not parts or not all(re.fullmatch(r"0*[1-9]\d{0,8}", part) for part in parts):
        raise ValueError(f"{name} is {fields.get(name, 'missing')!r}, not positive whole numbers")
    return tuple(int(part) for part in parts)


def voxels_start(data: bytes) -> int:
    """The offset at which the header ends, and the voxels begin if they are in the same file."""
    match = (_BLANK_LINE if is_nrrd(data) else _META_DATA).search(data[:HEAD_BYTES])
    return match.end() if match else len(data)


def data_files(path: Path, data: bytes) -> tuple[Path, ...]:
    """The files that contain the voxels of a header; none if they are in the same file."""
    fields = fields_of(data)
    location = fields.get("elementdatafile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
    if location.upper() == "LOCAL":
        return ()
    if location.split()[0] == "LIST":
        lines = _text(data[voxels_start(data) :] if is_metaimage(data) else _after_list(data)).splitlines()
        names = [line.strip() for line in lines if line.strip()]
    # NRRD numbers its files: a printf format, the first and the last number, and perhaps a step and a dimension.
    elif series := re.fullmatch(r"([^%]*%0?\d?d[^%\s]*)\s+(\d{1,5})\s+(\d{1,5})(?:\s+(\d{1,5}))?(?:\s+\d)?", location):
        first, last, step = int(series[2]), int(series[3]), int(series[4] or 1)
        names = [series[1] % number for number in range(first, last + 1, max(1, step))]
    else:
        names = [location]
    return tuple(path.parent / name.replace("\0", "?") for name in names)


def _after_list(data: bytes) -> bytes:
    """What follows "data file: LIST", the last field of a NRRD header: the names of the files."""
    return re.split(rb"data ?file:[ \t]*LIST[^\n]*\n", data[:HEAD_BYTES], maxsplit=1)[-1]


def _text(data: bytes) -> str:
    return data[:HEAD_BYTES].decode("utf-8", errors="replace")
