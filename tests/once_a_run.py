"""Folders that all processes of a test run share, for reading: whoever needs one first makes it."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, which `make` fills; a process that comes while another one makes it waits."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each of them has a folder of its own in that of the run
        folder = folder.parent
    with (folder / f"{name}.made").open("a") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        if not os.fstat(state.fileno()).st_size:
            make(folder / name)
            state.write("made")
    return folder / name
