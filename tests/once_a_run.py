"""What all processes of a test run share: folders for reading, which whoever needs one first makes."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

is_one_of_several = False
"""Whether this process is one of several that share a test run: conftest.py sets it. The environment does not tell: a
pytest that a test starts would take itself for its parent."""


def run_number() -> int:
    """The process of the test run that this one belongs to."""
    return os.getppid() if is_one_of_several else os.getpid()


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, which `make` fills; a process that comes while another one makes it waits."""
    folder = factory.getbasetemp()
    if is_one_of_several:  # each of them has a folder of its own in that of the run
        folder = folder.parent
    with (folder / f"{name}.made").open("a") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        if not os.fstat(state.fileno()).st_size:
            shutil.rmtree(folder / name, ignore_errors=True)  # of an attempt that failed
            make(folder / name)
            state.write("made")
    return folder / name
