"""Walk through the elements of a DICOM file, to notice a damaged length before memory is allocated for it.

GDCM, which reads the file, allocates what an element's length claims before it checks that the file is as long. https://dicom.nema.org/medical/dicom/current/output/chtml/part05/chapter_7.html
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from multiseg.errors import SourceError
from multiseg.store.formats.compression import inflate

HEAD_BYTES = 132
IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations whose length takes four bytes, after two reserved bytes."""
KINDS = LONG | {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
SYNTAX, PIXELS = (0x0002, 0x0010), (0x7FE0, 0x0010)
SAMPLES, FRAMES, BITS = (0x0028, 0x0002), (0x0028, 0x0008), (0x0028, 0x0100)
ROWS, COLUMNS = (0x0028, 0x0010), (0x0028, 0x0011)
KEPT = frozenset({SYNTAX, SAMPLES, FRAMES, ROWS, COLUMNS, BITS})
MAX_DEPTH = 32
"""No real file nests sequences deeper than this."""
MAX_INFLATED = 1 << 29
Tag = tuple[int, int]


@dataclass
class _Walk:
    """The file, the byte at which the walk ends, and the values found so far of the `KEPT` tags outside sequences."""

    file: BinaryIO
    end: int
    order: str = "<"
    is_explicit: bool = True
    values: dict[Tag, bytes] = field(default_factory=dict)


class _BrokenError(Exception):
    """An element does not fit into its file; the message names it."""


def check_elements(path: Path) -> None:
    """Check that every element of a DICOM file fits into it, and that the image has the bytes that its size needs.

    Raises:
        SourceError: an element does not fit, or the image is too short or too long.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            _check(_Walk(file, os.fstat(file.fileno()).st_size))
    except (_BrokenError, struct.error, EOFError, zlib.error, ValueError) as error:
        message = f"{path} is a damaged DICOM file: {error}. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error


def _check(walk: _Walk) -> None:
    begin = _elements(walk, HEAD_BYTES, walk.end, group=2)
    if SYNTAX not in walk.values:  # it says how the rest is encoded
        raise _BrokenError("it has no transfer syntax")
    syntax = walk.values[SYNTAX].decode("ascii", errors="replace").strip("\0 ")
    data = _Walk(walk.file, walk.end, ">" if syntax == BIG_ENDIAN else "<", syntax != IMPLICIT)
    if syntax == DEFLATED:
        walk.file.seek(begin)
        content = inflate(walk.file.read(), MAX_INFLATED)
        data, begin = _Walk(io.BytesIO(content), len(content)), 0
    _elements(data, begin, data.end)


def _elements(walk: _Walk, begin: int, end: int, depth: int = 0, group: int = 0) -> int:
    """Walk through elements to `end`, the end of their item, or the first one outside `group`; returns the offset."""
    if depth > MAX_DEPTH:
        raise _BrokenError(f"its sequences are nested more than {MAX_DEPTH} deep")
    while end - begin >= 8:
        tag, kind, length, value = _head(walk, begin)
        if group and tag[0] != group:
            return begin
        if tag in (ITEM_END, SEQUENCE_END):
            return begin + 8
        # Its end is marked by a delimiter.
        if length == UNDEFINED:
            begin = _items(walk, value, end, depth, is_raw=tag == PIXELS, is_plain=kind == b"UN")
            continue
        if value + length > end:
            name = f"({tag[0]:04x},{tag[1]:04x})"
            raise _BrokenError(f"its element {name} claims {length} bytes, but {max(0, end - value)} are left")
        # Elements without a value representation are sequences if they begin with an item.
        if kind == b"SQ" or (kind in (b"", b"UN") and length >= 8 and _tag(walk, value) == ITEM):
            _items(walk, value, value + length, depth, is_plain=kind == b"UN")
        elif depth == 0 and tag == PIXELS:
            _check_pixels(walk, length)
        elif depth == 0 and tag in KEPT:
            walk.file.seek(value)
            walk.values[tag] = walk.file.read(min(length, 256))
        begin = value + length
    return end


def _items(walk: _Walk, begin: int, end: int, depth: int, is_raw: bool = False, is_plain: bool = False) -> int:
    """Walk through the items of a sequence, or the fragments of a compressed image (`is_raw`); returns its end.

    Args:
        is_plain: its elements have no value representation, even if those in the rest of the file do.
    """
    inner = _Walk(walk.file, walk.end, walk.order, walk.is_explicit and not is_plain)
    while end - begin >= 8:
        tag = _tag(walk, begin)
        (length,) = struct.unpack(f"{walk.order}I", walk.file.read(4))
        begin += 8
        if tag == SEQUENCE_END:
            return begin
        if tag != ITEM:
            raise _BrokenError(f"its sequence has ({tag[0]:04x},{tag[1]:04x}) in place of an item")
        if length == UNDEFINED:
            begin = _elements(inner, begin, end, depth + 1)
            continue
        if begin + length > end:
            raise _BrokenError(f"an item claims {length} bytes, but {end - begin} are left")
        if not is_raw:
            _elements(inner, begin, begin + length, depth + 1)
        begin += length
    return end


def _head(walk: _Walk, begin: int) -> tuple[Tag, bytes, int, int]:
    """An element's tag, value representation ("" if it has none), length, and the offset of its value."""
    tag = _tag(walk, begin)
    rest = walk.file.read(8)
    kind = rest[:2]
    if tag[0] == 0xFFFE or not walk.is_explicit or not (kind.isalpha() and kind.isupper()):
        (length,) = struct.unpack_from(f"{walk.order}I", rest)
        return tag, b"", length, begin + 8
    if kind not in KINDS:
        name = f"({tag[0]:04x},{tag[1]:04x})"
        raise _BrokenError(f"its element {name} has the unknown value representation {kind.decode()!r}")
    if kind in LONG:
        (length,) = struct.unpack_from(f"{walk.order}I", rest, 4)
        return tag, kind, length, begin + 12
    (length,) = struct.unpack_from(f"{walk.order}H", rest, 2)
    return tag, kind, length, begin + 8


def _tag(walk: _Walk, begin: int) -> Tag:
    walk.file.seek(begin)
    group, element = struct.unpack(f"{walk.order}HH", walk.file.read(4))
    return group, element


def _check_pixels(walk: _Walk, length: int) -> None:
    """Check that an uncompressed image has the bytes that its size needs."""
    sizes = [_number(walk, tag, default) for tag, default in ((ROWS, 0), (COLUMNS, 0), (SAMPLES, 1), (BITS, 16))]
    text = walk.values.get(FRAMES, b"").decode("ascii", errors="replace").strip("\0 ")
    frames = int(text) if text.isdigit() else 1
    needed = (math.prod(sizes) * frames + 7) // 8
    spare = max(2, min(sizes[:2]) * sizes[3] // 8)  # an extra row or column means a wrong size
    if length < needed or length - needed >= spare:
        raise _BrokenError(f"its image of {sizes[0]} x {sizes[1]} voxels should have {needed} bytes, but has {length}")


def _number(walk: _Walk, tag: Tag, default: int) -> int:
    value = walk.values.get(tag, b"")
    return int(struct.unpack_from(f"{walk.order}H", value)[0]) if len(value) >= 2 else default
