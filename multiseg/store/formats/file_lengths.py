"""Compare the size that a header claims with its file, before memory is allocated: a damaged header may claim any."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.formats.compression import MAX_RATIO, gunzip_length

SPARE_BYTES = 1 << 24
"""The most that may follow the voxels of a compressed file (FreeSurfer appends tags); it is decompressed too."""


def check_length(path: Path, num_bytes: int, needed: int, face: int = 0) -> None:
    """Check that a file has the bytes that its header claims, and not many more.

    Args:
        face: bytes of the smallest face of the volume. If one size is too small by 1, at least so many bytes are left
            over, and voxels would be read into wrong places. 0 allows anything after the voxels.

    Raises:
        SourceError: the file is too short, or too long by a face.
    """
    if num_bytes < needed:
        message = f"{path} is shorter than its header says: {num_bytes} of {needed} bytes. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    if face and num_bytes - needed >= face:
        message = (
            f"{path} is longer than its header says: {num_bytes} bytes, but the header claims {needed}. The header "
            "has wrong sizes or a wrong voxel type. Copy or export it again."
        )
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))


def smallest_face(shape: Sequence[int], bytes_a_voxel: int) -> int:
    """Bytes of the smallest face of an array; 0 for an array without faces."""
    sizes = [n for n in shape if n > 1]
    return math.prod(sizes) // max(sizes) * bytes_a_voxel if len(sizes) > 1 else 0


def check_gzip_length(path: Path, needed: int, face: int = 0) -> None:
    """As `check_length`, for the content of a gzip file.

    The length is read from the last bytes of the file. If that is implausible, the file is decompressed and counted.

    Raises:
        SourceError: as `check_length`, or the file is damaged.
    """
    num_bytes = path.stat().st_size
    if needed > MAX_RATIO * num_bytes:
        check_length(path, MAX_RATIO * num_bytes, needed)
    with path.open("rb") as file:
        file.seek(max(0, num_bytes - 4))
        stated = int.from_bytes(file.read(4), "little")  # of the last member only, modulo 4 GiB
        if 0 <= (stated - needed) % 2**32 < (face or SPARE_BYTES):
            return
        file.seek(0)
        try:
            length = gunzip_length(file.read(), needed + SPARE_BYTES)
        except (EOFError, zlib.error) as error:
            message = f"{path} is a truncated or damaged gzip file ({num_bytes} bytes): {error}. Copy it again."
            raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    check_length(path, length, needed, face or SPARE_BYTES)
