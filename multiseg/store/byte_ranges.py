"""Byte ranges of a store's objects: what whoever decodes chunks by themselves asks for."""

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
"""First byte and the one after the last."""
GAP = 2**14
"""Ranges that are nearer to each other than this are read in one go."""


@runtime_checkable
class Parts(Protocol):
    """Where the bytes of a store's objects come from. Threads may share one; processes make their own."""

    def tail(self, key: str, size: int) -> bytes | None:
        """The last bytes of an object, all of a shorter one; None where there is none."""

    def read(self, key: str, ranges: Sequence[Range], is_first: bool) -> Sequence[memoryview]:
        """Parts of an object, in the order asked for. `is_first`: some were not read before by this process."""

    def forget(self, key: str) -> bool:
        """Do without what is kept of an object that proved damaged. Whether to read it again may help."""


class LocalParts:
    """Parts of files below a folder.

    What is read for the first time may not be in memory yet: it is asked for in few large reads, announced to
    the system all together. After that it is looked at through a memory map, without any copy. No file stays open.

    Raises (from its methods):
        StoreError: the file ends before a range does.
        ResourceError: the system cannot read it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._maps = MappedFiles()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalParts, (self.root,)  # a map belongs to its process

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
        mapped = None if is_first else self._maps.get(key) or self._mapped(key)
        if mapped is None:
            return self._read_first(key, ranges)
        if ranges and max(stop for _, stop in ranges) > len(mapped):
            raise self._too_short(key, len(mapped))
        return [mapped[start:stop] for start, stop in ranges]

    def _read_first(self, key: str, ranges: Sequence[Range]) -> Sequence[memoryview]:
        runs = joined(ranges)
        held: dict[Range, memoryview] = {}
        try:
            with (self.root / key).open("rb", buffering=0) as file:
                for start, stop in runs:
                    _announce(file.fileno(), start, stop)
                for start, stop in runs:
                    held[start, stop] = memoryview(os.pread(file.fileno(), stop - start, start))
                    if len(held[start, stop]) != stop - start:
                        raise self._too_short(key, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise self._unreadable(key, error) from error
        return cut(ranges, held)

    def _mapped(self, key: str) -> memoryview | None:
        try:
            return self._maps.add(self.root / key, key)
        except (OSError, ValueError) as error:  # a ValueError: the file is empty
            raise self._unreadable(key, error) from error

    def _too_short(self, key: str, size: int) -> StoreError:
        return StoreError(
            f"{self.root / key} ends after {size} bytes, before all of its chunks: it is truncated. "
            f"See what else is damaged with: multiseg verify {self.root}."
        )

    def _unreadable(self, key: str, error: Exception) -> ResourceError:
        otherwise = f"Check the disk and its permissions, and what is damaged with: multiseg verify {self.root}."
        return ResourceError(f"{self.root / key} cannot be read: {error}. {remedy(error, otherwise)}")


def _announce(file: int, start: int, stop: int) -> None:
    """Ask the system to begin to read; not all file systems hear it."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        os.posix_fadvise(file, start, stop - start, os.POSIX_FADV_WILLNEED)


def joined(ranges: Sequence[Range], gap: int = GAP) -> list[Range]:
    """Few ranges that cover all of those given, and at most `gap` bytes between two of them."""
    runs: list[Range] = []
    for start, stop in sorted(ranges):
        if runs and start - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return runs


def cut(ranges: Sequence[Range], held: dict[Range, memoryview]) -> list[memoryview]:
    """The ranges out of the bytes of the joined ones."""
    of_range = {}
    runs = iter(sorted(held))
    run = next(runs, (0, 0))
    for start, stop in sorted(ranges):
        while stop > run[1]:
            run = next(runs)
        of_range[start, stop] = held[run][start - run[0] : stop - run[0]]
    return [of_range[wanted] for wanted in ranges]
