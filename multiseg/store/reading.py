"""Reading one volume from whatever file it lies in, to the last byte, so that damage cannot pass."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.cases import Channel, ScanFile, Series, joined_sha256, part_of
from multiseg.store.nifti import read_nifti
from multiseg.store.volumes import Volume

GZIP_MAGIC = b"\x1f\x8b"


def read_volume(file: ScanFile) -> Volume:
    """One 3-D volume with finite values.

    Raises:
        SourceError: the file is missing, damaged, of no format we read, not 3-D, coloured, not finite, or
            its affine is singular. `code` tells which.
    """
    if isinstance(file, Series):
        raise NotImplementedError
    path = file.path if isinstance(file, Channel) else file
    raw = _read_bytes(path)
    sha256 = joined_sha256([hashlib.sha256(raw).hexdigest()], part_of(file))
    data = _gunzip(path, raw)
    return read_nifti(path, data, sha256, file.index if isinstance(file, Channel) else None)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path)) from None
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}. Check the path and its permissions."
        raise SourceError(message, code="UNREADABLE_FILE", file=str(path)) from error


def _gunzip(path: Path, raw: bytes) -> bytes:
    try:
        # gzip.decompress checks length and CRC of the whole stream.
        return gzip.decompress(raw) if raw[:2] == GZIP_MAGIC else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"{path} is a truncated or damaged gzip file ({len(raw)} bytes): {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
