"""Reading byte ranges of a store's objects, for code that decodes chunks without zarr."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from multiseg.errors import ResourceError, StoreError
from multiseg.faults import remedy
from multiseg.store.mapping import MappedFiles

Range: TypeAlias = tuple[int, int]
"""The first byte, and the one after the last."""
GAP = 2**14
"""Ranges at most this many bytes apart are read together."""


@runtime_checkable
class Parts(Protocol):
    """A source of the bytes of a store's objects. Threads may share one; each process makes its own."""

    def tail(self, key: str, size: int) -> bytes | None:
        """The last `size` bytes of an object, or all of a shorter one; None if there is no such object."""

    def read(self, key: str, ranges: Sequence[Range], is_first: bool) -> Sequence[memoryview]:
        """Byte ranges of an object, in the given order. `is_first`: this process reads some for the first time."""

    def forget(self, key: str) -> bool:
        """Drop the cached copy of a damaged object. Returns whether reading it again may help."""


class LocalParts:
    """Byte ranges of files in a folder.

    Data read for the first time may not be in the page cache: it is read in few large reads, which are announced to
    the system together. Later reads use a memory map, without copying. No file stays open.

    Raises (from its methods):
        StoreError: the file ends before a range does.
        ResourceError: the system cannot read it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._maps = MappedFiles()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalParts, (self.root,)  # a memory map belongs to its process

    def forget(self, key: str) -> bool:
        return False

    def tail(self, key: str, size: int) -> bytes | None:
        try:
            with (self.root / key).open("rb", buffering=0) as file:
                end = os.fstat(file.fileno()).st_size
                return os.pread(file.fileno(), size, max(0, end - size))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(key, error) from error

    def read(self, key: str, ranges: Sequence[Range], is_first: bool) -> Sequence[memoryview]:
        mapped = None if is_first else self._maps.get(key) or self._map_file(key)
        if mapped is None:
            return self._read_first(key, ranges)
        if ranges and max(stop for _, stop in ranges) > len(mapped):
            raise self._too_short(key, len(mapped))
        return [mapped[start:stop] for start, stop in ranges]

    def _read_first(self, key: str, ranges: Sequence[Range]) -> Sequence[memoryview]:
        runs = merge_ranges(ranges)
        data_of: dict[Range, memoryview] = {}
        try:
            with (self.root / key).open("rb", buffering=0) as file:
                for start, stop in runs:
                    _announce(file.fileno(), start, stop)
                for start, stop in runs:
                    data_of[start, stop] = memoryview(os.pread(file.fileno(), stop - start, start))
                    if len(data_of[start, stop]) != stop - start:
                        raise self._too_short(key, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise self._unreadable(key, error) from error
        return cut(ranges, data_of)

    def _map_file(self, key: str) -> memoryview | None:
        try:
            return self._maps.add(self.root / key, key)
        except (OSError, ValueError) as error:  # a ValueError: the file is empty
            raise self._unreadable(key, error) from error

    def _too_short(self, key: str, size: int) -> StoreError:
        return StoreError(
            f"{self.root / key} is truncated: it ends after {size} bytes, before its last chunk. "
            f"Find other damaged files with: multiseg verify {self.root}."
        )

    def _unreadable(self, key: str, error: Exception) -> ResourceError:
        advice = f"Check the disk and its permissions; find damaged files with: multiseg verify {self.root}."
        return ResourceError(f"cannot read {self.root / key}: {error}. {remedy(error, advice)}")


def _announce(file: int, start: int, stop: int) -> None:
    """Ask the system to start reading; some file systems ignore it."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        os.posix_fadvise(file, start, stop - start, os.POSIX_FADV_WILLNEED)


def merge_ranges(ranges: Sequence[Range], gap: int = GAP) -> list[Range]:
    """Merge ranges that overlap or are at most `gap` bytes apart; sorted."""
    runs: list[Range] = []
    for start, stop in sorted(ranges):
        if runs and start - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return runs


def cut(ranges: Sequence[Range], data_of: dict[Range, memoryview]) -> list[memoryview]:
    """Cut the given ranges out of the bytes of the merged ranges that contain them."""
    cut_out = {}
    runs = iter(sorted(data_of))
    run = next(runs, (0, 0))
    for start, stop in sorted(ranges):
        while stop > run[1]:
            run = next(runs)
        cut_out[start, stop] = data_of[run][start - run[0] : stop - run[0]]
    return [cut_out[wanted] for wanted in ranges]
