"""NIfTI in two files, a header (T1.hdr) and its voxels (T1.img), each perhaps in gzip.

They are read as the one file that they would make. Pairs of Analyze 7.5 look alike, but their header does not say
which side of the volume is the patient's left, and programs disagree about it: they are refused, never turned.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.formats.text_header import data_files

_HALF = re.compile(r"(?P<stem>.+)\.(?P<half>hdr|img)(?P<packed>(?:\.gz)*)", re.IGNORECASE)
_OTHER = {"hdr": "img", "img": "hdr", "HDR": "IMG", "IMG": "HDR"}
_HEADER_SIZE = {b"ni1\0": (344, 348), b"ni2\0": (4, 540)}
"""Where the header of a pair has its magic bytes, and how long it is."""
ANALYZE_SIZE = 348


def other_half(path: Path) -> Path | None:
    """The other file of a pair by its name, also where it is missing; None for a file that is not named as a half.

    >>> other_half(Path("a/T1.img")), other_half(Path("T1.nii"))
    (PosixPath('a/T1.hdr'), None)
    """
    match = _HALF.fullmatch(path.name)
    if match is None:
        return None
    half = match["half"]
    others = [_OTHER.get(half, _OTHER[half.lower()]), _OTHER[half.lower()], _OTHER[half.lower()].upper()]
    names = [f"{match['stem']}.{other}{packed}" for packed in (match["packed"], "", ".gz") for other in others]
    places = [path.with_name(name) for name in names]
    return next((place for place in places if place.exists()), places[0])


def further_files(path: Path, data: bytes) -> tuple[Path, ...]:
    """The files that hold the rest of a volume: a pair's other half, or the voxels that a text header names.

    Args:
        data: the file as it lies on disk, or its first bytes.
    """
    half = other_half(path)
    return (*data_files(path, data), *((half,) if half is not None and half.is_file() else ()))


def is_header(path: Path) -> bool:
    """Whether a file is named as the header of a pair."""
    match = _HALF.fullmatch(path.name)
    return match is not None and match["half"].lower() == "hdr"


def missing_half(path: Path, other: Path) -> SourceError:
    """What to say of a half whose other one is not there."""
    message = (
        f"{path} is half of a pair of files, a header (.hdr) and its voxels (.img), but {other.name} is not beside it. "
        "Copy both."
    )
    return SourceError(message, code="MISSING_FILE", file=str(path))


def joined(path: Path, header: bytes, voxels: bytes) -> bytes:
    """The bytes of the one NIfTI file that a pair would make.

    Args:
        path: the pair's header, for messages.

    Raises:
        SourceError: it is the header of no NIfTI pair.
    """
    head, offset = single_header(path, header)
    return head + voxels[offset:]


def single_header(path: Path, header: bytes) -> tuple[bytes, int]:
    """The header of the one file that a pair would make, up to its voxels, and where these begin in the .img file.

    Raises:
        SourceError: it is the header of no NIfTI pair, or its voxels begin nowhere.
    """
    kind = next((magic for magic, (at, _) in _HEADER_SIZE.items() if header[at : at + 4] == magic), None)
    if kind is None:
        raise _no_pair(path, header)
    at, size = _HEADER_SIZE[kind]
    if len(header) < size:
        message = f"{path} is a header of {len(header)} of {size} bytes. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    order = "<" if int.from_bytes(header[:4], "little") == size else ">"
    place, form = (108, "f") if kind == b"ni1\0" else (168, "q")
    (offset,) = struct.unpack_from(f"{order}{form}", header, place)
    if not (0 <= offset < 1 << 40):  # also NaN
        message = f"{path} says that its voxels begin at byte {offset:g}. Export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    single = bytearray(header[:size] + bytes(4))  # no extensions
    single[at : at + 4] = kind.replace(b"i", b"+")
    struct.pack_into(f"{order}{form}", single, place, size + 4)
    return bytes(single), int(offset)


def _no_pair(path: Path, header: bytes) -> SourceError:
    is_start = header[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
    if is_start and len(header) < ANALYZE_SIZE:
        message = f"{path} is a header of {len(header)} of {ANALYZE_SIZE} bytes. Copy it again."
        return SourceError(message, code="DAMAGED_FILE", file=str(path))
    if is_start:
        return SourceError(
            f"{path} is an Analyze 7.5 header, which does not say where left is, and programs disagree about it. "
            "Convert the pair to NIfTI with the program that wrote it, and check left and right against the patient.",
            code="ANALYZE",
            file=str(path),
        )
    message = f"{path} is no header of a NIfTI pair: its first bytes are {header[:4]!r}. Export the scan as .nii.gz."
    return SourceError(message, code="NOT_NIFTI", file=str(path))
