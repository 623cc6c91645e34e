"""Decompress gzip, zlib and bzip2: check every checksum and never use more memory than expected."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"
MAX_RATIO = 1100
"""The highest compression ratio that deflate can reach."""
MAX_RATIO_OF_BZIP2 = 100_000
"""bzip2 compresses a block of 900,000 equal bytes to 40 bytes."""
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, OSError, ValueError)
"""What decompression raises on damaged data."""
BLOCK = 1 << 16
"""Compressed bytes passed to the decompressor at a time."""
PIECE = 1 << 18
"""Most decompressed bytes returned at a time."""


def gunzip(data: bytes, max_bytes: int) -> bytes:
    """Decompress all members of a gzip file and check their lengths and CRCs.

    Raises:
        EOFError, zlib.error: the file is truncated or damaged.
        ValueError: the content is longer than `max_bytes`; no more than that was kept in memory.
    """
    return _collect(_members(data), max_bytes)


def gunzip_head(data: bytes, num_bytes: int) -> bytes:
    """The first bytes of the content of a gzip file, given its first compressed bytes.

    Raises:
        zlib.error: the data is damaged.
    """
    head = b""
    try:
        for piece in _members(data):
            head += piece
            if len(head) >= num_bytes:
                break
    except EOFError:  # `data` is only the start of the file
        pass
    return head[:num_bytes]


def gunzip_length(data: bytes, max_bytes: int) -> int:
    """The length of the content of a gzip file, without keeping it. Stops counting beyond `max_bytes`.

    Raises:
        EOFError, zlib.error: the file is truncated or damaged.
    """
    length = 0
    for piece in _members(data):
        length += len(piece)
        if length > max_bytes:
            break
    return length


def unpack(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress the voxels of a MetaImage or NRRD file. MetaImage's "compressed" is zlib.

    Raises:
        EOFError, zlib.error, OSError, ValueError: the data is damaged, or longer than `max_bytes`.
    """
    if encoding == "raw":
        return data
    if encoding == "bzip2":
        return _collect(_bzip2_pieces(data), max_bytes)
    pieces = _members(data) if data[:2] == GZIP_MAGIC else _zlib_stream(zlib.decompressobj(), memoryview(data))
    return _collect(pieces, max_bytes)


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Decompress a bare deflate stream, which has no header and no checksum.

    Raises:
        EOFError, zlib.error, ValueError: as `gunzip`.
    """
    # wbits=-15: without header and checksum.
    return _collect(_zlib_stream(zlib.decompressobj(wbits=-15), memoryview(data)), max_bytes)


def _collect(pieces: Iterator[bytes], max_bytes: int) -> bytes:
    whole = io.BytesIO()  # getvalue() does not copy
    for piece in pieces:
        if whole.tell() + len(piece) > max_bytes:
            raise ValueError(f"it decompresses to more than the {max_bytes} bytes that its header allows")
        whole.write(piece)
    return whole.getvalue()


def _members(data: bytes) -> Iterator[bytes]:
    """The content of a gzip file, member by member. Zeros after the last member are padding."""
    rest = memoryview(data)
    while len(rest):
        # wbits=31: with the header and checksum of gzip.
        begin = yield from _zlib_stream(zlib.decompressobj(wbits=31), rest)
        while begin < len(rest) and rest[begin] == 0:
            begin += 1
        rest = rest[begin:]


def _zlib_stream(decompressor: Any, data: memoryview) -> Generator[bytes, None, int]:
    """The content of one zlib stream in pieces; returns the offset in `data` at which the stream ends."""
    begin, block = 0, b""
    while not decompressor.eof:
        is_all_read = begin >= len(data) and not block
        if not block:
            block = bytes(data[begin : begin + BLOCK])
            begin += len(block)
        piece = decompressor.decompress(block, PIECE)
        block = decompressor.unconsumed_tail
        if piece:
            yield piece
        elif is_all_read and not decompressor.eof:
            raise EOFError("it ends within a block")
    return begin - len(decompressor.unused_data)


def _bzip2_pieces(data: bytes) -> Iterator[bytes]:
    """The content of a bzip2 file, stream by stream."""
    rest = data
    while rest:
        decompressor = bz2.BZ2Decompressor()
        block = rest
        while not decompressor.eof:
            piece = decompressor.decompress(block, PIECE)
            block = b""
            if not piece and decompressor.needs_input and not decompressor.eof:
                raise EOFError("it ends within a block")
            yield piece
        rest = decompressor.unused_data
