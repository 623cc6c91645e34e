"""Freed memory is kept where glibc would hand it back, unless somebody said otherwise."""

import ctypes
import os
import subprocess
import sys

import pytest

from multiseg import allocator

PROGRAM = """
import numpy as np
from multiseg.allocator import keep_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

told = keep_memory()
before = resident()
np.ones(2**23)
print(told, resident() - before > 32)
"""
IS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def said(**environment: str) -> list[str]:
    """Whether memory was said to be kept, and whether half of a freed block of 64 MiB is still there."""
    set_here = (allocator.SWITCH, *allocator.USER_SETTINGS)
    clean = {name: value for name, value in os.environ.items() if name not in set_here}
    run = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        run, env=clean | environment, capture_output=True, encoding="utf-8", check=True
    ).stdout.split()


@pytest.mark.skipif(not IS_GLIBC, reason="it is glibc that hands memory back")
def test_memory_is_kept_unless_it_was_said_otherwise() -> None:
    assert said() == ["True", "True"]
    assert said(MULTISEG_KEEP_MEMORY="0") == ["False", "False"]
    assert said(MALLOC_TRIM_THRESHOLD_="100000") == ["False", "False"]


def test_nothing_is_done_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        def mallopt(self, *_: int) -> int:
            raise AssertionError("musl has other settings")

    for name in (allocator.SWITCH, *allocator.USER_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Musl())
    assert not allocator.keep_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_memory()


def test_an_older_glibc_gets_the_most_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Older:
        def gnu_get_libc_version(self) -> None: ...

        def mallopt(self, what: int, size: int) -> int:
            asked.append((what, size))
            return int(what == allocator.M_TRIM_THRESHOLD or size <= 2**25)

    for name in (allocator.SWITCH, *allocator.USER_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Older())
    monkeypatch.setattr(sys, "platform", "linux")
    assert allocator.keep_memory()
    assert asked == [(-3, 2**31 - 1), (-3, 2**25), (-1, 2**31 - 1)]
