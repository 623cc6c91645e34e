"""A run ends with its server, also where nobody waits for dead processes."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PR_SET_CHILD_SUBREAPER = 36
SUPEREXEC = """
import importlib, sys, time
from pathlib import Path
flower_superexec = importlib.import_module("flwr.supercore.cli.flower_superexec")
def stands_in():
    from flwr.supercore.superexec.executor import subprocess_executor
    child = subprocess_executor.subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(sys.argv[1]).write_text(str(child.pid))
    time.sleep(600)
flower_superexec.flower_superexec = stands_in
from multiseg.federation.flower.superexec import main
main(["flower-superexec", sys.argv[1]])
"""


def state_of(pid: int) -> str:
    """A letter of Linux: R, S, Z for a process that ended and was not waited for; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are adopted by a subreaper on Linux")
def test_a_run_does_not_outlive_a_superexec_that_was_killed_and_stays_a_zombie(tmp_path: Path) -> None:
    """This process adopts the orphans, as an init that does not wait."""
    file = tmp_path / "pid"
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    superexec = subprocess.Popen([sys.executable, "-c", SUPEREXEC, str(file)])
    run = 0
    try:
        until = time.monotonic() + 60
        while not (file.exists() and file.read_text()):
            assert superexec.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        run = int(file.read_text())
        assert state_of(run) in {"R", "S", "D"}
        os.kill(superexec.pid, signal.SIGKILL)
        while state_of(run) in {"R", "S", "D"}:
            assert time.monotonic() < until, "the run goes on without its server"
            time.sleep(0.05)
        assert state_of(superexec.pid) == "Z"
        os.kill(superexec.pid, 0)  # which says that it is there
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        superexec.wait()
        if run:
            os.waitpid(run, 0)
