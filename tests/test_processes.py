"""Processes that others start: whether they run, how they end, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiseg.processes import environment, how_it_ended, is_running


def test_who_runs() -> None:
    assert is_running(os.getpid())
    assert is_running(1)  # perhaps of another account
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert not is_running(done.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="a zombie is told by Linux's /proc")
def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays
        os.kill(killed.pid, 0)
        assert not is_running(killed.pid)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was ended by SIGKILL (mostly since memory ran out)"),
        (-15, "was ended by SIGTERM"),
        (-99, "was ended by signal 99"),
    ],
)
def test_an_end_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_variables_are_defaults_for_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "mine")
    monkeypatch.delenv("ADDED", raising=False)
    with environment({"GIVEN": "1", "ADDED": "2"}):
        assert (os.environ["GIVEN"], os.environ["ADDED"]) == ("mine", "2")
    assert os.environ["GIVEN"] == "mine"
    assert "ADDED" not in os.environ


CHILD = """
import multiprocessing, os, sys, time
from multiseg import processes

def work(path):
    processes.leave_signals_to_parent()
    processes.end_with_parent()
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    start, path = sys.argv[1:]
    context = processes.fork_server() if start == "forkserver" else multiprocessing.get_context(start)
    context.Process(target=work, args=(path,)).start()
    time.sleep(600)
"""


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_child_ends_with_a_parent_that_was_killed(start: str, tmp_path: Path) -> None:
    script, told = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(CHILD)
    with subprocess.Popen([sys.executable, str(script), start, str(told)]) as parent:
        pid = int(until(lambda: told.read_text() if told.exists() else ""))
        os.kill(pid, signal.SIGINT)  # left to the parent
        time.sleep(0.2)
        assert is_running(pid)
        parent.kill()
    assert until(lambda: not is_running(pid))


def until(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value
