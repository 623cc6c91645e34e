"""A process that ended and was not waited for does not run, though its number is found."""

import os
import subprocess
import sys

import pytest

from multiseg.running import is_running


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
