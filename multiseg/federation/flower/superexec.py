"""Flower's SuperExec, with runs that end when it ends.

Flower's own runs watch their parent's PID, which exists until someone reaps the dead parent. Without an init that does,
as in many containers, a run outlives its server and keeps the experiment's folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

from multiseg.processes import die_with


def main(arguments: list[str]) -> None:
    """Run it: `python -m multiseg.federation.flower.superexec flower-superexec OPTIONS`."""
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    start = partial(subprocess.Popen, preexec_fn=partial(die_with, os.getpid()))
    executor: Any = subprocess_executor
    executor.subprocess = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)
    sys.argv = arguments
    flower_superexec()


if __name__ == "__main__":
    main(sys.argv[1:])
