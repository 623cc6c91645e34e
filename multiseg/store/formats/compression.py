"""Undoing gzip, zlib and bzip2 with every checksum looked at."""

from __future__ import annotations

import bz2
import gzip
import zlib

GZIP_MAGIC = b"\x1f\x8b"
MAX_RATIO = 1100
"""Deflate cannot make anything smaller than by this."""
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, OSError, ValueError)
"""What unpacking says of damaged data."""


def gunzip(data: bytes) -> bytes:
    """The content of a gzip file, its length and CRC checked.

    Its last bytes tell how long the content is, and with that zlib is a third faster. They are those of the
    last member of several; then, and where anything else is odd, the slow way looks at it all.

    Raises:
        EOFError, zlib.error, gzip.BadGzipFile: it is truncated or damaged.
    """
    crc, length = data[-8:-4], int.from_bytes(data[-4:], "little")
    if 0 < length < MAX_RATIO * len(data):
        try:
            whole = zlib.decompress(data, wbits=31, bufsize=length)
        except zlib.error:
            return gzip.decompress(data)
        if len(whole) == length and zlib.crc32(whole).to_bytes(4, "little") == crc:
            return whole
    return gzip.decompress(data)


def unpack(data: bytes, encoding: str) -> bytes:
    """The voxels of a MetaImage or NRRD file; "zlib" is what MetaImage calls compressed.

    Raises:
        EOFError, zlib.error, gzip.BadGzipFile, OSError, ValueError: they are truncated or damaged.
    """
    if encoding == "raw":
        return data
    if encoding == "bzip2":
        return bz2.decompress(data)
    return gunzip(data) if data[:2] == GZIP_MAGIC else zlib.decompress(data)
