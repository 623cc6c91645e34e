"""Reading byte ranges of the objects at a URL in as few round trips as possible."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from functools import cached_property
from typing import Any

import obstore
from obstore.exceptions import BaseError, NotSupportedError

from multiseg.errors import ResourceError, StoreError
from multiseg.store.byte_ranges import LocalParts, Range, cut, merge_ranges
from multiseg.store.remote.connection import (
    KEPT_OBJECTS,
    WEB_READS_AT_ONCE,
    connect,
    is_no_bucket,
    patience,
    translating_errors,
)
from multiseg.store.remote.disk_cache import DiskCache, name_of

NEAR_BYTES = 2**16
"""A gap between two ranges up to this size is read along with them: another request would cost more."""
MOST_REQUESTS = 10
"""The most requests of one read. All are sent in parallel (obstore allows this many), so that a read takes one round
trip. A window that touches 3 x 3 x 3 chunks takes nine requests: its rows along k, without the gaps between them."""
COPY_BYTES = 2**24
"""The size of one request when an object is copied to the disk. After a broken connection only one is repeated."""
_UNKNOWN = datetime.fromtimestamp(0, UTC)
"""The modification time that obstore reports if the server sends none."""
_BEYOND = r"\b416\b|InvalidRange|Range Not Satisfiable"


class _Support(Enum):
    """What a server can send: an object's last bytes (Azure cannot), any range of bytes, or only whole objects."""

    TAIL = auto()
    PARTS = auto()
    WHOLE = auto()


@dataclass
class _Copy:
    """The local copy of one object. `may_be`: whether to use a copy at all; not after it proved damaged."""

    name: str
    version: str
    num_bytes: int
    is_here: bool = False
    may_be: bool = True


class RemoteParts:
    """Byte ranges of the objects at a URL. Threads may share one; it is pickled as its URL and cache.

    A read requests all of its ranges in parallel. If the server does not support range requests, whole objects are
    read, and the last few are kept in memory.

    With a disk cache, an object is copied whole when it is first read, if there is room, and is read from the copy
    from then on. The object's version (its ETag, or else its size and modification time) is part of the copy's name.
    It comes with the answer to `tail`, which every process requests once per object before anything else. So a copy is
    never older than the process that reads it, and checking it needs no extra request. Nothing is copied from a server
    that sends neither ETag nor time. A few hundred bytes of memory are kept for each object whose tail was read.

    Do not use it in a process that was forked after its parent used any URL: obstore would wait forever.

    Raises (from its methods):
        StoreError: the bucket does not exist; or the object is too short for a range, or was overwritten meanwhile.
        ResourceError: the server cannot be reached, or denies access.
    """

    def __init__(self, url: str, cache: DiskCache | None = None) -> None:
        self.url = url.rstrip("/")
        self._server = _Server(self.url)
        self._cache = cache
        self._local = None if cache is None else LocalParts(cache.objects)
        self._copies: dict[str, _Copy] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteParts, (self.url, self._cache)

    def tail(self, key: str, size: int) -> bytes | None:
        with translating_errors(self.url):
            try:
                data, metadata = self._server.tail(key, size, self._cache is not None)
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                return None
            self._remember_version(key, metadata)
            if data is not None:
                return data
            end = metadata["size"]
            return bytes(self.read(key, [(max(0, end - size), end)], is_first=True)[0]) if end else b""

    def read(self, key: str, ranges: Sequence[Range], is_first: bool) -> Sequence[memoryview]:
        with _translating_errors(self.url, key):
            local = self._local_copy(key)
            if local is not None:
                try:
                    return local.read(self._copies[key].name, ranges, is_first)
                except (StoreError, ResourceError):  # the copy, not the object, is missing or damaged
                    self.forget(key)
            return self._server.read(key, ranges)

    def forget(self, key: str) -> bool:
        """Drop the damaged copy of an object. Returns whether there was one, so that reading again may help."""
        copy = self._copies.get(key)
        if self._cache is None or copy is None or not copy.is_here:
            return False
        copy.is_here = copy.may_be = False
        self._cache.drop(copy.name)
        self._local = LocalParts(self._cache.objects)  # the new one has not mapped the file
        return True

    def _remember_version(self, key: str, meta: Any) -> None:
        """Remember an object's version."""
        version, known = _version(meta), self._copies.get(key)
        if self._cache is not None and version and (known is None or known.version != version):
            self._copies[key] = _Copy(name_of(self.url, key, version), version, meta["size"])

    def _local_copy(self, key: str) -> LocalParts | None:
        """Where to read the copy of an object; it is made now if there is room. None if there is no copy."""
        copy = self._copies.get(key)
        if self._cache is None or copy is None or not copy.may_be:
            return None
        if not copy.is_here:
            copy.is_here = self._cache.find(copy.name, copy.num_bytes)
        if not copy.is_here:
            copy.is_here = self._cache.fill(copy.name, copy.num_bytes, self._server.pieces(key, copy.version))
        return self._local if copy.is_here else None


class _Server:
    """The objects at a URL, requested in a way that their server supports. It raises obstore's own exceptions."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._support = _Support.TAIL
        self._whole: OrderedDict[str, tuple[memoryview, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._run = patience(url).run
        self._turns = threading.Semaphore(WEB_READS_AT_ONCE)

    @cached_property
    def _objects(self) -> Any:
        """The connection. It is opened at the first read, since it does not work in another process."""
        return connect(self.url)

    def tail(self, key: str, size: int, is_for_copy: bool) -> tuple[bytes | None, Any]:
        """The last bytes of an object and its metadata. No bytes if the server needs their position to send them."""
        if self._support is _Support.TAIL:
            try:
                return self._run(lambda: _get(self._objects, key, {"range": {"suffix": size}}))
            except NotSupportedError:
                self._support = _Support.PARTS
        # For a copy, which may exist already, only the version is needed.
        if self._support is _Support.WHOLE and not is_for_copy:
            whole, meta = self._object(key)
            return bytes(whole[-size:]), meta
        meta = self._run(lambda: obstore.head(self._objects, key))
        with self._lock:
            if key in self._whole and _version(self._whole[key][1]) != _version(meta):
                del self._whole[key]
        return None, meta

    def read(self, key: str, ranges: Sequence[Range]) -> Sequence[memoryview]:
        if self._support is not _Support.WHOLE:
            try:
                return self._ranges(key, ranges)
            except NotSupportedError:
                self._support = _Support.WHOLE
        whole, _ = self._object(key)
        if ranges and max(stop for _, stop in ranges) > len(whole):
            raise _too_short(self.url, key)
        return [whole[start:stop] for start, stop in ranges]

    def pieces(self, key: str, version: str) -> Iterator[Any]:
        """A whole object in pieces; StoreError if its version has changed."""
        if self._support is _Support.WHOLE:
            whole, meta = self._object(key)
            self._check_unchanged(key, meta, version)
            yield whole
            return
        size = int(version.split()[0])
        for start in range(0, size, COPY_BYTES):
            part = {"range": (start, min(size, start + COPY_BYTES))}
            try:
                data, meta = self._run(lambda part=part: _get(self._objects, key, part))  # type: ignore[misc]
            except NotSupportedError:
                if start:
                    raise
                self._support = _Support.WHOLE
                yield from self.pieces(key, version)
                return
            self._check_unchanged(key, meta, version)
            yield data

    def _check_unchanged(self, key: str, meta: Any, version: str) -> None:
        if _version(meta) != version:
            raise _changed(self.url, key, "overwritten")

    def _ranges(self, key: str, ranges: Sequence[Range]) -> Sequence[memoryview]:
        merged = limit_ranges(ranges)
        starts, ends = [start for start, _ in merged], [stop for _, stop in merged]
        parts = self._run(lambda: obstore.get_ranges(self._objects, key, starts=starts, ends=ends, coalesce=0))
        data_of = {run: memoryview(part) for run, part in zip(merged, parts, strict=True)}
        if any(len(part) != stop - start for (start, stop), part in data_of.items()):
            raise _too_short(self.url, key)
        return cut(ranges, data_of)

    def _object(self, key: str) -> tuple[memoryview, Any]:
        with self._turns:
            with self._lock:
                if key in self._whole:
                    self._whole.move_to_end(key)
                    return self._whole[key]
            data, meta = self._run(lambda: _get(self._objects, key, {}))
            whole = memoryview(data), meta
        with self._lock:
            self._whole[key] = whole
            while len(self._whole) > KEPT_OBJECTS:
                self._whole.popitem(last=False)
        return whole


def _get(objects: Any, key: str, options: Any) -> tuple[bytes, Any]:
    """The data and the metadata of an object, or of a range of it."""
    answer = obstore.get(objects, key, options=options)
    return bytes(answer.bytes()), answer.meta


@contextmanager
def _translating_errors(url: str, key: str) -> Iterator[None]:
    """As `translating_errors`, for an object that exists according to its index: a missing or short one is an error."""
    with translating_errors(url):
        try:
            yield
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise
            raise _changed(url, key, "deleted") from error
        except BaseError as error:
            if re.search(_BEYOND, str(error)):
                raise _too_short(url, key) from error
            raise


def _changed(url: str, key: str, how: str) -> StoreError:
    return StoreError(f"{url}/{key} was {how} while it was read. Start again when nobody writes to the store.")


def _too_short(url: str, key: str) -> StoreError:
    return StoreError(
        f"{url}/{key} is truncated: it ends before its last chunk. Find other damaged files with: "
        f"multiseg verify {url}."
    )


def limit_ranges(ranges: Sequence[Range]) -> list[Range]:
    """Merge ranges into at most MOST_REQUESTS, with as little extra data as possible."""
    gap = NEAR_BYTES
    while len(merged := merge_ranges(ranges, gap)) > MOST_REQUESTS:
        gap *= 2
    return merged


def _version(meta: Any) -> str:
    """The version of an object: its size and ETag or modification time. Empty if the server sends neither."""
    if meta["e_tag"]:
        return f"{meta['size']} {meta['e_tag']}"
    is_dated = meta["last_modified"] > _UNKNOWN
    return f"{meta['size']} {meta['last_modified'].isoformat()}" if is_dated else ""
