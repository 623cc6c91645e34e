"""The first window of a case that is nowhere in memory: milliseconds, and megabytes read from the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import nnunet
from benchmarks.cases import Cases
from benchmarks.ours import NUM_WINDOWS, Work, open_stream, touch, windows_of
from benchmarks.sides import in_fresh_process, in_words

_LIBC = ctypes.CDLL(None, use_errno=True)
Reading = tuple[float, float]
"""Milliseconds, and megabytes from the disk."""


def evict(paths: Iterable[Path]) -> None:
    """Put files out of the page cache, and look that they are."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        left = resident_pages(path)
        assert not left, f"{left} pages of {path} stay in memory: is it mapped by another process?"


def resident_pages(path: Path) -> int:
    """Pages of a file that the page cache holds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as view:
        pages = -(-len(view) // mmap.PAGESIZE)
        held = (ctypes.c_ubyte * pages)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        failed = _LIBC.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(view)), held)
        assert not failed, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in held)


def compare(cases: Cases, edge: int, rounds: int) -> None:
    """Print the ratio of the times of first windows, over all cases but the first one, which warms the code."""
    folder = nnunet.folder_of(cases, edge)
    work = Work(cases.url, edge, workers=0, batch_size=1)
    sides: list[tuple[Callable[..., list[Reading]], tuple[object, ...]]] = [
        (_ours, (work,)),
        (_theirs, (folder, work)),
    ]
    found: dict[int, list[list[Reading]]] = {0: [], 1: []}
    for at in range(rounds):
        for side in (0, 1) if at % 2 else (1, 0):
            evict(path for path in Path(cases.url).rglob("c/**/*") if path.is_file())
            evict(path for path in folder.iterdir() if path.stat().st_size)
            function, arguments = sides[side]
            found[side].append(in_fresh_process(function, *arguments))
    ratios = [_median(b, 0) / _median(a, 0) for a, b in zip(found[0], found[1], strict=True)]
    ours, theirs = (
        f"{statistics.median(_median(r, 0) for r in found[side]):.1f} ms, "
        f"{statistics.median(_mean(r, 1) for r in found[side]):.1f} MB"
        for side in (0, 1)
    )
    print(
        f"first window of a cold case, {edge}^3 | nnU-Net | {in_words(ratios)} "
        f"| {ours} against {theirs} | {rounds} rounds of {len(found[0][0])} cases",
        flush=True,
    )


def _median(readings: Sequence[Reading], at: int) -> float:
    return statistics.median(reading[at] for reading in readings)


def _mean(readings: Sequence[Reading], at: int) -> float:
    return statistics.fmean(reading[at] for reading in readings)


def _ours(work: Work) -> list[Reading]:
    stream = open_stream(work)
    batches = stream.batches(0, NUM_WINDOWS)
    return _first_windows(work, (touch(batch.images, batch.target) for batch in batches))


def _theirs(folder: Path, work: Work) -> list[Reading]:
    batches = nnunet.in_process(folder, work)
    return _first_windows(work, (touch(batch["data"], batch["target"]) for batch in batches))


def _first_windows(work: Work, batches: Iterator[int]) -> list[Reading]:
    """What each pull took that was the first of its case."""
    seen: set[str] = set()
    readings = []
    names = [case for _, case, _, _ in windows_of(replace(work, batch_size=1))]
    for name in names:
        read, began = _bytes_read(), time.perf_counter()
        next(batches)
        took = time.perf_counter() - began
        if name not in seen:
            seen.add(name)
            readings.append((1000 * took, (_bytes_read() - read) / 1e6))
        if len(seen) == len(set(names)):
            break
    return readings[1:]


def _bytes_read() -> int:
    """Bytes that this process has had fetched from a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
