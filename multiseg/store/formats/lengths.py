"""What a header claims, held against what its file has, before memory is asked for: one flipped bit claims anything."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.formats.compression import MAX_RATIO, gunzipped_length

SPARE_BYTES = 1 << 24
"""What may stand behind the voxels of a compressed file, such as what FreeSurfer keeps there, and is unpacked, too."""


def check_length(path: Path, held: int, needed: int, face: int = 0) -> None:
    """Whether a file has the bytes that its header claims, and not many more.

    Args:
        face: bytes of the smallest face of the volume. A size that is too small by 1 leaves that many over: then the
            rest of the voxels would be read into wrong places. 0: whatever follows the voxels is right.

    Raises:
        SourceError: it is shorter, or longer by a face.
    """
    if held < needed:
        message = f"{path} is shorter than its header says: {held} of {needed} bytes. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    if face and held - needed >= face:
        message = (
            f"{path} is longer than its header says: {held} bytes, where the header tells of {needed}. Its sizes or "
            "the type of its voxels are wrong there. Copy or export it again."
        )
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))


def smallest_face(shape: Sequence[int], bytes_a_voxel: int) -> int:
    """Bytes of the smallest face of an array; 0 where it has none."""
    sizes = [n for n in shape if n > 1]
    return math.prod(sizes) // max(sizes) * bytes_a_voxel if len(sizes) > 1 else 0


def check_gzip_length(path: Path, needed: int, face: int = 0) -> None:
    """As `check_length`, of the content of a gzip file: from its last bytes and, where these are odd, by unpacking it
    without keeping any of it.

    Raises:
        SourceError: as `check_length`, or the file is damaged.
    """
    num_bytes = path.stat().st_size
    if needed > MAX_RATIO * num_bytes:
        check_length(path, MAX_RATIO * num_bytes, needed)
    with path.open("rb") as file:
        file.seek(max(0, num_bytes - 4))
        told = int.from_bytes(file.read(4), "little")  # of the last member, and only up to 4 GiB
        if 0 <= (told - needed) % 2**32 < (face or SPARE_BYTES):
            return
        file.seek(0)
        try:
            held = gunzipped_length(file.read(), needed + SPARE_BYTES)
        except (EOFError, zlib.error) as error:
            message = f"{path} is a truncated or damaged gzip file ({num_bytes} bytes): {error}. Copy it again."
            raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    check_length(path, held, needed, face or SPARE_BYTES)
