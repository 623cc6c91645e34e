"""Files as memory, without a descriptor for each.

Python's own `mmap` keeps a copy of the descriptor as long as its map lives (until 3.13, which can do without). The
system needs none: so the file is mapped with the C library's own call, and closed at once. A process may then map
tens of thousands of files, whatever `ulimit -n` says.
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
"""Files that stay mapped; Linux lets a process have 65,530 maps (vm.max_map_count)."""
_FAILED = ctypes.c_void_p(-1).value


class MappedFiles:
    """The files that were read last, mapped into memory. Threads may share it."""

    def __init__(self, num: int = KEPT_MAPS) -> None:
        self._num = num
        self._maps: OrderedDict[str, memoryview] = OrderedDict()

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, path: str) -> memoryview | None:
        """The bytes of a file that is mapped already."""
        return self._maps.get(path)

    def add(self, path: Path, key: str) -> memoryview | None:
        """The bytes of a file; None where the system has no map for it, so that it has to be read.

        Raises:
            OSError: it cannot be opened.
            ValueError: it is empty.
        """
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ValueError("the file is empty")
            try:
                found = _map(file.fileno(), size)
            except OSError:  # some file systems have no maps, and a process may have only so many
                for _ in range(len(self._maps) // 2):
                    self._maps.popitem(last=False)
                return None
        self._maps[key] = found
        while len(self._maps) > self._num:
            self._maps.popitem(last=False)
        return found


def _map(descriptor: int, size: int) -> memoryview:
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memoryview(np.asarray(_Map(address, size)).data)


class _Map:
    """One map, which goes when nothing looks at it any more. numpy takes its bytes from the address, and keeps it."""

    def __init__(self, address: int, size: int) -> None:
        self._place = address, size
        self._unmap = _libc().munmap  # at the interpreter's end there may be no module left to find it in
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True), "shape": (size,), "typestr": "|u1", "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        self._unmap(*self._place)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
