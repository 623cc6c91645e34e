"""Byte ranges of the objects behind a URL, in as few round trips as there can be."""

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
from multiseg.store.byte_ranges import LocalParts, Range, cut, joined
from multiseg.store.remote.connection import KEPT_OBJECTS, WEB_READS_AT_ONCE, connect, in_words, is_no_bucket, patience
from multiseg.store.remote.disk_cache import DiskCache, name_of

NEAR_BYTES = 2**16
"""What lies between two ranges is sent along if it is less: another request costs more than that."""
MOST_REQUESTS = 10
"""Of one read. They are under way all at once (obstore lets so many be), so that a read takes one round trip. A window
that touches 3 x 3 x 3 chunks takes nine: its rows along k, and nothing of what lies between."""
COPY_BYTES = 2**24
"""Of one request for an object on its way to the disk: what is cut off is asked for again from there."""
_UNKNOWN = datetime.fromtimestamp(0, UTC)
"""The time of change that obstore gives where the server tells none."""
_BEYOND = r"\b416\b|InvalidRange|Range Not Satisfiable"


class _Way(Enum):
    """What a server knows to send: an object's last bytes (not Azure), any of its bytes, or only all of them."""

    TAIL = auto()
    PARTS = auto()
    WHOLE = auto()


@dataclass
class _Copy:
    """Of one object on the local disk; `may_be` there, or not after it proved damaged."""

    name: str
    version: str
    num_bytes: int
    is_here: bool = False
    may_be: bool = True


class RemoteParts:
    """Parts of the objects behind a URL. Threads may share one; it is sent to other processes by its URL.

    A read asks for all of its ranges at once. A server that answers no requests for ranges is asked for whole
    objects, of which the last few are kept in memory.

    With a disk cache, an object is copied whole when it is first read, if there is room for it, and is a local file
    from then on. Its version (the ETag, or without one its size and time of change) is part of the copy's name. It
    is learnt from the answer to `tail`, which every process asks the server for once, as it needs that before
    anything else: so a copy is never older than the process that reads it, at no request more. A server that
    tells neither ETag nor time has nothing copied. Only objects whose tail was asked for are copied; a few hundred
    bytes of memory are kept for each.

    Not for a process that was forked after its parent used any URL: obstore then waits for ever.

    Raises (from its methods):
        StoreError: the bucket is not there; the object ends before a range does, or was written again meanwhile.
        ResourceError: the server cannot be reached, or refuses.
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
        with in_words(self.url):
            try:
                found, meta = self._server.tail(key, size, self._cache is not None)
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                return None
            self._meet(key, meta)
            if found is not None:
                return found
            end = meta["size"]
            return bytes(self.read(key, [(max(0, end - size), end)], is_first=True)[0]) if end else b""

    def read(self, key: str, ranges: Sequence[Range], is_first: bool) -> Sequence[memoryview]:
        with _in_words(self.url, key):
            local = self._copied(key)
            if local is not None:
                try:
                    return local.read(self._copies[key].name, ranges, is_first)
                except (StoreError, ResourceError):  # the copy is gone or damaged, not the object
                    self.forget(key)
            return self._server.read(key, ranges)

    def forget(self, key: str) -> bool:
        """Do without the copy of an object, which is damaged. Whether there was one, so that to read again may help."""
        copy = self._copies.get(key)
        if self._cache is None or copy is None or not copy.is_here:
            return False
        copy.is_here = copy.may_be = False
        self._cache.drop(copy.name)
        self._local = LocalParts(self._cache.objects)  # which has not mapped it
        return True

    def _meet(self, key: str, meta: Any) -> None:
        """Take note of an object's version."""
        version, known = _version(meta), self._copies.get(key)
        if self._cache is not None and version and (known is None or known.version != version):
            self._copies[key] = _Copy(name_of(self.url, key, version), version, meta["size"])

    def _copied(self, key: str) -> LocalParts | None:
        """Where the copy of an object is read, made now if there is room for it."""
        copy = self._copies.get(key)
        if self._cache is None or copy is None or not copy.may_be:
            return None
        copy.is_here = (
            copy.is_here
            or self._cache.find(copy.name, copy.num_bytes)
            or self._cache.fill(copy.name, copy.num_bytes, self._server.pieces(key, copy.version))
        )
        return self._local if copy.is_here else None


class _Server:
    """Objects below a URL, asked for in the way that their server knows. Its errors are still obstore's."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._way = _Way.TAIL
        self._whole: OrderedDict[str, tuple[memoryview, Any]] = OrderedDict()
        self._own = threading.Lock()
        self._run = patience(url).run
        self._turns = threading.Semaphore(WEB_READS_AT_ONCE)

    @cached_property
    def _objects(self) -> Any:
        """Connected to by whoever reads first: what a process opened is of no use in another."""
        return connect(self.url)

    def tail(self, key: str, size: int, is_for_copy: bool) -> tuple[bytes | None, Any]:
        """The last bytes of an object and what is told of it; no bytes where they have to be read by their place."""
        if self._way is _Way.TAIL:
            try:
                return self._run(lambda: _get(self._objects, key, {"range": {"suffix": size}}))
            except NotSupportedError:
                self._way = _Way.PARTS
        if self._way is _Way.WHOLE and not is_for_copy:  # a copy that is there spares all of it
            whole, meta = self._object(key)
            return bytes(whole[-size:]), meta
        meta = self._run(lambda: obstore.head(self._objects, key))
        with self._own:
            if key in self._whole and _version(self._whole[key][1]) != _version(meta):
                del self._whole[key]
        return None, meta

    def read(self, key: str, ranges: Sequence[Range]) -> Sequence[memoryview]:
        if self._way is not _Way.WHOLE:
            try:
                return self._ranges(key, ranges)
            except NotSupportedError:
                self._way = _Way.WHOLE
        whole, _ = self._object(key)
        if ranges and max(stop for _, stop in ranges) > len(whole):
            raise _too_short(self.url, key)
        return [whole[start:stop] for start, stop in ranges]

    def pieces(self, key: str, version: str) -> Iterator[Any]:
        """All of an object, if it is still the same."""
        if self._way is _Way.WHOLE:
            whole, meta = self._object(key)
            self._check_same(key, meta, version)
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
                self._way = _Way.WHOLE
                yield from self.pieces(key, version)
                return
            self._check_same(key, meta, version)
            yield data

    def _check_same(self, key: str, meta: Any, version: str) -> None:
        if _version(meta) != version:
            raise StoreError(
                f"{self.url}/{key} was written again while it was read. Start again when nobody writes to the store."
            )

    def _ranges(self, key: str, ranges: Sequence[Range]) -> Sequence[memoryview]:
        runs = few(ranges)
        starts, ends = [start for start, _ in runs], [stop for _, stop in runs]
        found = self._run(lambda: obstore.get_ranges(self._objects, key, starts=starts, ends=ends, coalesce=0))
        held = {run: memoryview(part) for run, part in zip(runs, found, strict=True)}
        if any(len(part) != stop - start for (start, stop), part in held.items()):
            raise _too_short(self.url, key)
        return cut(ranges, held)

    def _object(self, key: str) -> tuple[memoryview, Any]:
        with self._turns:
            with self._own:
                if key in self._whole:
                    self._whole.move_to_end(key)
                    return self._whole[key]
            data, meta = self._run(lambda: _get(self._objects, key, {}))
            whole = memoryview(data), meta
        with self._own:
            self._whole[key] = whole
            while len(self._whole) > KEPT_OBJECTS:
                self._whole.popitem(last=False)
        return whole


def _get(objects: Any, key: str, options: Any) -> tuple[bytes, Any]:
    """All of an answer, and what is told of the object."""
    found = obstore.get(objects, key, options=options)
    return bytes(found.bytes()), found.meta


@contextmanager
def _in_words(url: str, key: str) -> Iterator[None]:
    """As for any object, and for one whose index told that it is there and what it holds."""
    with in_words(url):
        try:
            yield
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise
            raise StoreError(
                f"{url}/{key} was there a moment ago and is gone. Start again when nobody writes to the store."
            ) from error
        except BaseError as error:
            if re.search(_BEYOND, str(error)):
                raise _too_short(url, key) from error
            raise


def _too_short(url: str, key: str) -> StoreError:
    return StoreError(
        f"{url}/{key} ends before all of its chunks: it is truncated. See what else is damaged with: "
        f"multiseg verify {url}."
    )


def few(ranges: Sequence[Range]) -> list[Range]:
    """At most MOST_REQUESTS ranges that cover those given, with as little more as that takes."""
    gap = NEAR_BYTES
    while len(runs := joined(ranges, gap)) > MOST_REQUESTS:
        gap *= 2
    return runs


def _version(meta: Any) -> str:
    """What tells two objects of one name apart; empty where the server tells nothing to go by."""
    if meta["e_tag"]:
        return f"{meta['size']} {meta['e_tag']}"
    is_dated = meta["last_modified"] > _UNKNOWN
    return f"{meta['size']} {meta['last_modified'].isoformat()}" if is_dated else ""
