"""Loaders side by side: each in a process of its own that stands still while the other one is timed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_FORKED = multiprocessing.get_context("forkserver")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Source:
    """A loader that may be timed.

    Attributes:
        make: starts the loader, in the side's own process; gives the number of patches of each batch, once they
            are delivered and touched. It never ends.
        ready: batches that may lie ready after a pause, and are not timed.
        cycle: batches after which its work repeats, where it works in bursts.
        first: batches before anything is timed, where a cache has to be filled.
    """

    name: str
    make: Callable[[], Iterator[int]]
    ready: int = 16
    cycle: int = 1
    first: int = 0


@dataclass(frozen=True)
class Speed:
    """Patches for each second on the clock, and for each second of processor time of all processes of the side."""

    wall: float
    cpu: float


class Side:
    """A source at work in a process of its own, which stands still between its turns."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._pipe, other = _FORKED.Pipe()
        self._process = _FORKED.Process(target=_serve, args=(source, other))
        self._process.start()
        other.close()
        self._answer()
        self._signal(signal.SIGSTOP)

    def run(self, seconds: float) -> Speed:
        """The speed over at least this many seconds, and whole cycles of the source."""
        self._signal(signal.SIGCONT)
        self._pipe.send(seconds)
        speed: Speed = self._answer()
        self._signal(signal.SIGSTOP)
        return speed

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._signal(signal.SIGCONT)
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(20)
        with suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid or 0, number)

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.source.name} ended without a word.") from None
        if isinstance(answer, str) and answer:
            raise RuntimeError(f"{self.source.name} failed:\n{answer}")
        return answer


def _serve(source: Source, pipe: Connection) -> None:
    os.setsid()  # a process group, so that its workers stand still with it
    # Such a process would ask the same server; what a loader does by default is to fork.
    multiprocessing.set_start_method("fork", force=True)
    try:
        batches = source.make()
        for _ in range(max(1, source.first)):
            next(batches)
        pipe.send("")
        while (seconds := pipe.recv()) is not None:
            for _ in range(-(-source.ready // source.cycle) * source.cycle):
                next(batches)
            pipe.send(_timed(batches, source.cycle, seconds))
        if hasattr(batches, "close"):
            batches.close()
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


def _timed(batches: Iterator[int], cycle: int, seconds: float) -> Speed:
    patches, number, used = 0, 0, cpu_seconds()
    began = time.perf_counter()
    while True:
        patches += next(batches)
        number += 1
        took = time.perf_counter() - began
        if took >= seconds and number % cycle == 0:
            return Speed(patches / took, patches / max(cpu_seconds() - used, 1 / _TICKS))


def members() -> list[int]:
    """The processes of this process's group."""
    group, found = os.getpgrp(), []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(path.name)) == group:
                    found.append(int(path.name))
    return found


def cpu_seconds() -> float:
    """Processor time that the processes of this group have used; of those that have ended, too, if waited for."""
    total = 0
    for process in members():
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def compare(ours: Source, theirs: Source, rounds: int, seconds: float) -> None:
    """Print the ratio of the speeds, above 1 when ours is faster: medians over the rounds, and the range."""
    with ExitStack() as stack:
        sides = [stack.enter_context(_open(source)) for source in (ours, theirs)]
        speeds: dict[Side, list[Speed]] = {side: [] for side in sides}
        for at in range(rounds + 1):
            for side in sides if at % 2 else reversed(sides):
                speed = side.run(seconds)
                if at:  # the first round warms caches
                    speeds[side].append(speed)
    mine, other = speeds.values()
    wall = [a.wall / b.wall for a, b in zip(mine, other, strict=True)]
    cpu = [a.cpu / b.cpu for a, b in zip(mine, other, strict=True)]
    rates = [statistics.median(speed.wall for speed in found) for found in (mine, other)]
    print(
        f"{ours.name} | {theirs.name} | {in_words(wall)} | processor time {in_words(cpu)} "
        f"| {rates[0]:.1f} against {rates[1]:.1f} patches/s | {rounds} rounds",
        flush=True,
    )


def in_words(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


@contextmanager
def _open(source: Source) -> Iterator[Side]:
    side = Side(source)
    try:
        yield side
    finally:
        side.close()


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a new process, where nothing is open and nothing is mapped."""
    receiver, sender = _FORKED.Pipe(duplex=False)
    process = _FORKED.Process(target=_answering, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        good, answer = receiver.recv()
    finally:
        process.join()
    if not good:
        raise RuntimeError(answer)
    return answer


def _answering(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method("fork", force=True)
    try:
        sender.send((True, function(*arguments)))
    except Exception:  # noqa: BLE001  told to whoever asked
        sender.send((False, traceback.format_exc()))
