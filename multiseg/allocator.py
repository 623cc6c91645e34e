"""Keeping freed memory for the next step, where glibc would hand it back to the system.

glibc returns large blocks as soon as they are freed, and the system zeroes and maps them again for the next layer,
which takes up to a third of the time of a training step on a CPU. Two settings of its allocator end that (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import os
import sys

SWITCH = "MULTISEG_KEEP_MEMORY"
"""The environment variable that turns it off, as "0"."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
LARGEST_OF_OLD = 32 * 2**20
"""Older glibc refuse to take larger blocks from the heap than this."""
OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""Whoever sets these has said how it is to be."""


def keep_memory() -> bool:
    """Have this process keep the memory that it frees; whether that was done.

    To be called where a process begins to compute, and again at no cost. Peak memory rises, by 13% in a training step
    of the published network. Nothing is done without glibc (musl, macOS), where the environment says how glibc is to
    allocate, or where `MULTISEG_KEEP_MEMORY` is "0".
    """
    is_said = os.environ.get(SWITCH) == "0" or any(os.environ.get(name) for name in OWN_SETTINGS)
    if is_said or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    is_kept = any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in (LARGEST, LARGEST_OF_OLD))
    return bool(libc.mallopt(M_TRIM_THRESHOLD, LARGEST)) and is_kept
