"""Where the time of one reader goes: the stream in this process under cProfile."""

from __future__ import annotations

import cProfile
import pstats
import time
from pathlib import Path

from benchmarks.ours import Work, open_stream, touch

PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("labels", ("labels.py", "_read_target")),
    ("draw", ("draw.py", "chance.py", "centres.py", "numpy.random", "Generator")),
    ("decode", ("decode", "decompress", "blosc", "numcodecs")),
    ("checksum", ("crc32", "_checked")),
    ("files", ("posix.", "mmap", "parts.py", "io.open", "memory.py")),
    ("copy", ("_fill", "method 'copy'", "numpy.zeros", "numpy.empty", "numpy.array")),
    ("index", ("shards.py", "divmod")),
    ("batch", ("batches.py", "ring.py", "workers.py", "torch")),
)
"""A function counts for the first part that its file or name has a word of."""


def profile(work: Work, num_batches: int) -> None:
    """Print the shares of the parts, and the functions that take most; a profile itself slows small calls."""
    batches = open_stream(work).batches(0, 2 * num_batches)
    for _ in range(num_batches):  # opens every case
        batch = next(batches)
        touch(batch.images, batch.target)
    recorder = cProfile.Profile()
    began = time.perf_counter()
    recorder.enable()
    for batch in batches:
        touch(batch.images, batch.target)
    recorder.disable()
    took = time.perf_counter() - began
    stats = pstats.Stats(recorder)
    total = {name: 0.0 for name, _ in PARTS} | {"rest": 0.0}
    rows = []
    for (file, line, function), (_, calls, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        where = f"{Path(file).name}:{line} {function}"
        total[_part(f"{file} {function}")] += own
        rows.append((own, calls, where))
    print(f"profile, workers=0, {work.edge}^3: {num_batches * work.batch_size / took:.1f} patches/s while profiled")
    for name, seconds in sorted(total.items(), key=lambda item: -item[1]):
        print(f"  {100 * seconds / took:5.1f} %  {name}")
    for own, calls, where in sorted(rows, reverse=True)[:15]:
        print(f"  {1000 * own / num_batches / work.batch_size:8.3f} ms a patch, {calls} calls: {where}")


def _part(where: str) -> str:
    name = where.replace("\\", "/").rpartition("site-packages/")[2]
    return next((part for part, words in PARTS if any(word in name for word in words)), "rest")
