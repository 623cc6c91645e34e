"""Memory-mapped files that need no file descriptor each.

Python's `mmap` keeps a duplicate of the descriptor as long as the map exists (3.13 can do without). The system does not
need it. So we call the C library's `mmap` and close the file at once: a process can then map tens of thousands of
files, whatever `ulimit -n` is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

KEPT_MAPS = 2**14
"""The most files to keep mapped; Linux allows 65,530 maps per process (vm.max_map_count)."""
_FAILED = ctypes.c_void_p(-1).value


class MappedFiles:
    """The most recently mapped files. Threads may share it."""

    def __init__(self, max_maps: int = KEPT_MAPS) -> None:
        self._max_maps = max_maps
        self._maps: OrderedDict[str, memoryview] = OrderedDict()

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, path: str) -> memoryview | None:
        """The bytes of a file that is mapped already; None for any other."""
        return self._maps.get(path)

    def add(self, path: Path, key: str) -> memoryview | None:
        """Map a file and return its bytes; None if the system cannot map it, so that it must be read.

        Raises:
            OSError: it cannot be opened.
            ValueError: it is empty.
        """
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ValueError("the file is empty")
            try:
                data = _map(file.fileno(), size)
            except OSError:  # some file systems have no maps, and a process may have only a limited number
                for _ in range(len(self._maps) // 2):
                    self._maps.popitem(last=False)
                return None
        self._maps[key] = data
        while len(self._maps) > self._max_maps:
            self._maps.popitem(last=False)
        return data


def _map(descriptor: int, size: int) -> memoryview:
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memoryview(np.asarray(_Map(address, size)).data)


class _Map:
    """One map, removed when nothing refers to it. numpy reads its bytes by address and keeps a reference to it."""

    def __init__(self, address: int, size: int) -> None:
        self._region = address, size
        self._unmap = _libc().munmap  # kept here, since at the interpreter's exit the module may be gone already
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True), "shape": (size,), "typestr": "|u1", "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        self._unmap(*self._region)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
