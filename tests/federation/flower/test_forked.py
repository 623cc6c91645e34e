"""Work in a forked process."""

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from multiseg.federation.flower.forked import EXPENDABLE, Forked

PATIENCE = 30.0


def ended(child: Forked) -> Forked:
    assert child.wait(PATIENCE)
    return child


def test_it_gives_back_bytes() -> None:
    assert ended(Forked(lambda is_asked: b"x" * 5_000_000)).result() == b"x" * 5_000_000
    assert ended(Forked(lambda is_asked: b"")).result() == b""


def test_it_is_the_first_that_the_kernel_kills() -> None:
    child = ended(Forked(lambda is_asked: Path("/proc/self/oom_score_adj").read_bytes()))
    assert int(child.result() or b"0") >= EXPENDABLE


def test_what_it_raises_stays_on_this_side(capfd: pytest.CaptureFixture[str]) -> None:
    def work(is_asked: Callable[[], bool]) -> bytes:
        raise ValueError("no such patient")

    assert ended(Forked(work)).result() is None
    assert "no such patient" in capfd.readouterr().err


def test_a_death_is_known_though_its_children_live(capfd: pytest.CaptureFixture[str]) -> None:
    def work(is_asked: Callable[[], bool]) -> bytes:
        if not os.fork():
            print(os.getpid(), flush=True)
        time.sleep(600)
        return b""

    child = Forked(work)
    while not (said := capfd.readouterr().out):
        assert not child.wait(0.02)
    child.stop(signal.SIGKILL)
    assert ended(child).result() is None
    until = time.monotonic() + PATIENCE
    while is_alive(int(said)):
        assert time.monotonic() < until


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_half_a_result_is_none() -> None:
    child = Forked(lambda is_asked: b"x" * 50_000_000)  # more than a pipe holds: it waits for us to read
    assert select.select([child._pipe], [], [], PATIENCE)[0]
    child.stop(signal.SIGKILL)
    assert ended(child).result() is None


def test_it_stops_when_asked() -> None:
    def work(is_asked: Callable[[], bool]) -> bytes:
        while not is_asked():
            time.sleep(0.01)
        return b"stopped"

    child = Forked(work)
    while not child.wait(0.05):
        child.stop()  # again and again: it may not listen yet
    assert child.result() in (b"stopped", None)
