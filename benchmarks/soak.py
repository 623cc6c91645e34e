"""The stream at full rate for a long time: does its memory stay flat, are descriptors leaked?

Run: python -m benchmarks.soak --minutes 20 (or --seconds 60)
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import phantom_cases, real_cases
from benchmarks.ours import FOR_EVER, Work, open_stream, touch

_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True)
class Reading:
    """What the main process and all that came from it hold, in MB; shared pages count in parts in `pss`."""

    patches_per_s: float
    main_rss: float
    main_pss: float
    workers_rss: float
    workers_pss: float
    processes: int
    descriptors: int
    shared_memory: float


def descendants(process: int) -> list[int]:
    """The processes that a process started, and theirs."""
    children = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):
            children += [int(child) for child in (task / "children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


def _rss(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_MB


def _pss(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def read(patches_per_s: float) -> Reading:
    me = os.getpid()
    rss, pss, descriptors, alive = [], [], len(os.listdir("/proc/self/fd")), 0  # noqa: PTH208
    for process in descendants(me):
        with suppress(OSError):
            rss.append(_rss(process))
            pss.append(_pss(process))
            descriptors += len(list(Path(f"/proc/{process}/fd").iterdir()))
            alive += 1
    shared = shutil.disk_usage("/dev/shm").used / 1e6
    return Reading(patches_per_s, _rss(me), _pss(me), sum(rss), sum(pss), alive, descriptors, shared)


def _show(minutes: float, now: Reading) -> None:
    print(
        f"{minutes:6.1f} min | {now.patches_per_s:7.1f} patches/s "
        f"| main RSS {now.main_rss:.0f} PSS {now.main_pss:.0f} MB "
        f"| {now.processes} workers RSS {now.workers_rss:.0f} PSS {now.workers_pss:.0f} MB "
        f"| {now.descriptors} descriptors | /dev/shm {now.shared_memory:.0f} MB",
        flush=True,
    )


def growth(readings: list[Reading]) -> list[str]:
    """What grew from the first quarter to the last, the very first reading left out: everything is warming up."""
    settled = readings[1:] or readings
    quarter = max(1, len(settled) // 4)
    lines = []
    for name in Reading.__dataclass_fields__:
        first, last = (
            statistics.fmean(getattr(reading, name) for reading in part)
            for part in (settled[:quarter], settled[-quarter:])
        )
        lines.append(f"{name}: {first:.1f} in the first quarter, {last:.1f} in the last, {last - first:+.1f}")
    return lines


def soak(work: Work, seconds: float, every_s: float = 30) -> list[Reading]:
    """Run the stream and print what it holds, every so often."""
    readings: list[Reading] = []
    began = last = time.perf_counter()
    patches = 0
    batches = open_stream(work).batches(0, FOR_EVER)
    for batch in batches:
        patches += touch(batch.images, batch.target)
        now = time.perf_counter()
        if now - last >= every_s or now - began >= seconds:
            readings.append(read(patches / (now - last)))
            _show((now - began) / 60, readings[-1])
            patches, last = 0, time.perf_counter()
        if now - began >= seconds:
            break
    batches.close()  # type: ignore[attr-defined]
    return readings


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--every", type=float, default=30, help="seconds between two lines")
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder of real scans, as $MULTISEG_DATA")
    parser.add_argument("--cases", type=int, default=12)
    given = parser.parse_args(argv)
    cases = real_cases(given.data, given.cases) if given.data else phantom_cases(given.cases)
    print(f"{cases.what}; {given.edge}^3, {given.workers} workers", flush=True)
    work = Work(cases.url, given.edge, given.workers)
    seconds = given.seconds if given.seconds is not None else 60 * given.minutes
    readings = soak(work, seconds, min(given.every, seconds / 8))
    print("\n".join(growth(readings)))
    print(f"after the end: {len(descendants(os.getpid()))} processes, {read(0).descriptors} descriptors, "
          f"/dev/shm {read(0).shared_memory:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
