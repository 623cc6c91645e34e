"""Undoing gzip, zlib and bzip2 with every checksum looked at, and never into more memory than was expected."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"
MAX_RATIO = 1100
"""Deflate cannot make anything smaller than by this."""
MAX_RATIO_OF_BZIP2 = 100_000
"""bzip2 makes a block of 900,000 equal bytes as small as 40."""
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, OSError, ValueError)
"""What unpacking says of damaged data."""
BLOCK = 1 << 16
"""Compressed bytes that are looked at together."""
PIECE = 1 << 18
"""Unpacked bytes that come at once."""


def gunzip(data: bytes, at_most: int) -> bytes:
    """The content of a gzip file, of all its members, its lengths and CRCs checked.

    Raises:
        EOFError, zlib.error: it is truncated or damaged.
        ValueError: it unpacks to more than `at_most` bytes, of which no more were kept.
    """
    return _gathered(_members(data), at_most)


def gunzipped_head(data: bytes, num_bytes: int) -> bytes:
    """The first bytes of a gzip file's content, from the first bytes of the file.

    Raises:
        zlib.error: they are damaged.
    """
    head = b""
    try:
        for piece in _members(data):
            head += piece
            if len(head) >= num_bytes:
                break
    except EOFError:  # no more of the file was given
        pass
    return head[:num_bytes]


def gunzipped_length(data: bytes, at_most: int) -> int:
    """How long the content of a gzip file is; more than `at_most` where it is longer than that. Nothing is kept.

    Raises:
        EOFError, zlib.error: it is truncated or damaged.
    """
    length = 0
    for piece in _members(data):
        length += len(piece)
        if length > at_most:
            break
    return length


def unpack(data: bytes, encoding: str, at_most: int) -> bytes:
    """The voxels of a MetaImage or NRRD file; "zlib" is what MetaImage calls compressed.

    Raises:
        EOFError, zlib.error, OSError, ValueError: they are truncated or damaged, or more than `at_most` bytes.
    """
    if encoding == "raw":
        return data
    if encoding == "bzip2":
        return _gathered(_of_bzip2(data), at_most)
    return gunzip(data, at_most) if data[:2] == GZIP_MAGIC else _gathered(_of_zlib(data), at_most)


def inflated(data: bytes, at_most: int) -> bytes:
    """What bare deflate, without a head and a checksum, packed.

    Raises:
        EOFError, zlib.error, ValueError: as `gunzip`.
    """
    return _gathered(_stream(zlib.decompressobj(wbits=-15), memoryview(data)), at_most)


def _gathered(pieces: Iterator[bytes], at_most: int) -> bytes:
    whole = io.BytesIO()  # which gives its bytes away without a copy
    for piece in pieces:
        if whole.tell() + len(piece) > at_most:
            raise ValueError(f"it unpacks to more than the {at_most} bytes that its header leaves room for")
        whole.write(piece)
    return whole.getvalue()


def _members(data: bytes) -> Iterator[bytes]:
    """The content of a gzip file, member after member; zeros behind the last one are padding."""
    rest = memoryview(data)
    while len(rest):
        begin = yield from _stream(zlib.decompressobj(wbits=31), rest)
        while begin < len(rest) and rest[begin] == 0:
            begin += 1
        rest = rest[begin:]


def _of_zlib(data: bytes) -> Iterator[bytes]:
    yield from _stream(zlib.decompressobj(), memoryview(data))


def _stream(machine: Any, data: memoryview) -> Generator[bytes, None, int]:
    """What one zlib stream holds, in pieces; comes back with the place of its end in the data."""
    begin, block = 0, b""
    while not machine.eof:
        is_all_read = begin >= len(data) and not block
        if not block:
            block = bytes(data[begin : begin + BLOCK])
            begin += len(block)
        piece = machine.decompress(block, PIECE)
        block = machine.unconsumed_tail
        if piece:
            yield piece
        elif is_all_read and not machine.eof:
            raise EOFError("it ends before its last block does")
    return begin - len(machine.unused_data)


def _of_bzip2(data: bytes) -> Iterator[bytes]:
    """What a bzip2 file holds, stream after stream."""
    rest = data
    while rest:
        machine = bz2.BZ2Decompressor()
        block = rest
        while not machine.eof:
            piece = machine.decompress(block, PIECE)
            block = b""
            if not piece and machine.needs_input and not machine.eof:
                raise EOFError("it ends before its last block does")
            yield piece
        rest = machine.unused_data
