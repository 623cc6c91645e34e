"""NIfTI in two files, a header (T1.hdr) and its voxels (T1.img), each perhaps in gzip.

They are read as the single file with the same content. Analyze 7.5 pairs look alike but are refused: their header does
not say which side is the patient's left, and programs disagree about it.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.formats.text_header import data_files

_HALF = re.compile(r"(?P<stem>.+)\.(?P<half>hdr|img)(?P<gzip>(?:\.gz)*)", re.IGNORECASE)
_OTHER = {"hdr": "img", "img": "hdr", "HDR": "IMG", "IMG": "HDR"}
_HEADER_SIZE = {b"ni1\0": (344, 348), b"ni2\0": (4, 540)}
"""The offset of the magic bytes and the length of the header, by version of the format."""
ANALYZE_SIZE = 348


def other_half(path: Path) -> Path | None:
    """The other file of a pair by name, even if it is missing; None for a file not named as part of a pair.

    >>> other_half(Path("a/T1.img")), other_half(Path("T1.nii"))
    (PosixPath('a/T1.hdr'), None)
    """
    match = _HALF.fullmatch(path.name)
    if match is None:
        return None
    half = match["half"]  # the same case first, then the others
    others = [_OTHER.get(half, _OTHER[half.lower()]), _OTHER[half.lower()], _OTHER[half.lower()].upper()]
    names = [f"{match['stem']}.{other}{suffix}" for suffix in (match["gzip"], "", ".gz") for other in others]
    places = [path.with_name(name) for name in names]
    return next((place for place in places if place.exists()), places[0])


def further_files(path: Path, data: bytes) -> tuple[Path, ...]:
    """The other files of a volume: the other half of a pair, or the files that a text header names.

    Args:
        data: the content of the file, not decompressed, or its first bytes.
    """
    half = other_half(path)
    return (*data_files(path, data), *((half,) if half is not None and half.is_file() else ()))


def is_header(path: Path) -> bool:
    """Whether a file is named as the header of a pair."""
    match = _HALF.fullmatch(path.name)
    return match is not None and match["half"].lower() == "hdr"


def missing_half(path: Path, other: Path) -> SourceError:
    """The error for half of a pair without the other half."""
    message = (
        f"{path} is half of a pair of files, a header (.hdr) and its voxels (.img), but {other.name} is missing. "
        "Copy both into one folder."
    )
    return SourceError(message, code="MISSING_FILE", file=str(path))


def join_pair(path: Path, header: bytes, voxels: bytes) -> bytes:
    """The bytes of the single NIfTI file with the content of a pair.

    Args:
        path: of the header, for messages.

    Raises:
        SourceError: as `single_header`.
    """
    new_header, offset = single_header(path, header)
    return new_header + voxels[offset:]


def single_header(path: Path, header: bytes) -> tuple[bytes, int]:
    """The header of a pair as that of a single file, and the offset of the voxels in the .img file.

    Raises:
        SourceError: it is not the header of a NIfTI pair, is truncated, or has an invalid offset.
    """
    kind = next((magic for magic, (start, _) in _HEADER_SIZE.items() if header[start : start + 4] == magic), None)
    if kind is None:
        raise _not_a_pair(path, header)
    magic_start, size = _HEADER_SIZE[kind]
    if len(header) < size:
        message = f"{path} is a truncated header: {len(header)} of {size} bytes. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    order = "<" if int.from_bytes(header[:4], "little") == size else ">"
    field, number = (108, "f") if kind == b"ni1\0" else (168, "q")  # vox_offset
    (offset,) = struct.unpack_from(f"{order}{number}", header, field)
    if not (0 <= offset < 1 << 40):  # also excludes NaN
        message = f"{path} has its voxels at byte {offset:g}, which is impossible. Export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    single = bytearray(header[:size] + bytes(4))  # no extensions
    single[magic_start : magic_start + 4] = kind.replace(b"i", b"+")
    struct.pack_into(f"{order}{number}", single, field, size + 4)
    return bytes(single), int(offset)


def _not_a_pair(path: Path, header: bytes) -> SourceError:
    is_analyze = header[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
    if is_analyze and len(header) < ANALYZE_SIZE:
        message = f"{path} is a truncated header: {len(header)} of {ANALYZE_SIZE} bytes. Copy it again."
        return SourceError(message, code="DAMAGED_FILE", file=str(path))
    if is_analyze:
        message = (
            f"{path} is an Analyze 7.5 header, which does not say which side is left, and programs disagree about it. "
            "Convert the pair to NIfTI with the program that wrote it, and check left and right against the patient."
        )
        return SourceError(message, code="ANALYZE", file=str(path))
    message = f"{path} is not the header of a NIfTI pair (it begins with {header[:4]!r}). Export the scan as .nii.gz."
    return SourceError(message, code="NOT_NIFTI", file=str(path))
