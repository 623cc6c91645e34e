"""Sources for the tests of the benchmarks, in a module that imports little: a spawned process imports it, too."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path


def at_work(path: Path) -> Iterator[int]:
    """Batches, and beside them something that never rests, as workers do that fill a queue."""

    def write() -> None:
        for number in itertools.count():
            path.write_text(str(number))
            time.sleep(0.001)

    threading.Thread(target=write, daemon=True).start()
    while True:
        yield 2


def fail() -> Iterator[int]:
    raise ValueError("no such case 'B007'")
    yield 1
