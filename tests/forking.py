"""Python programs that a process starts, forked from the process itself, which has imported what they need.

A deployment is a dozen fresh Pythons, each of which imports torch or Flower for seconds. In a process in which this is
installed, and in all that come from it, `subprocess.Popen` forks for `python -m MODULE` and for a command that is a
script of Python. Such a child has a process group, output, environment and name of its own, dies by signals, and runs
the module as `__main__`, as a fresh Python would. Other programs start as ever, and so does whatever a process with
threads starts.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOM = "-" * 1000
"""An argument for a process whose name is to be changed: as long as names may be."""
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def install() -> None:
    """From now on this process, and all that are forked from it, fork themselves."""
    subprocess.Popen = Forking  # type: ignore[misc]
    os.execv = lambda program, command: run(list(command))  # type: ignore[assignment]


class Forking(subprocess.Popen[Any]):
    """`subprocess.Popen`, which forks where the program is one of Python."""

    def _execute_child(self, *arguments: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(start).bind(*arguments).arguments
        if program_of(given["args"], given["env"]) is None or threading.active_count() > 1:
            start(*arguments)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            begin(given)
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in PIPES))  # type: ignore[attr-defined]


def program_of(command: Sequence[str], environment: Mapping[str, str] | None) -> str | None:
    """The module or the file of Python that a command runs; None where it runs neither."""
    if not isinstance(command, list | tuple):
        return None
    if command[0] == sys.executable:
        return command[2] if command[1] == "-m" else None
    path = shutil.which(command[0], path=(os.environ if environment is None else environment).get("PATH"))
    if path is None:
        return None
    with Path(path).open("rb") as file:
        first = file.readline()
    return path if first.startswith(b"#!") and b"python" in first else None


def begin(given: Mapping[str, Any]) -> NoReturn:
    """In the child: what the kernel and a fresh Python do before a program runs, and the program."""
    if given["start_new_session"]:
        os.setsid()
    if given["preexec_fn"] is not None:
        given["preexec_fn"]()
    for at, descriptor in enumerate((given["p2cread"], given["c2pwrite"], given["errwrite"])):
        if descriptor != -1:
            os.dup2(descriptor, at)
    # Of the parent's locks and lines, too: they end with it, and their objects here are not used any more.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if given["cwd"] is not None:
        os.chdir(given["cwd"])
    if given["env"] is not None:
        os.environ.clear()
        os.environ.update(given["env"])
    run(given["args"])


def run(command: Sequence[str]) -> NoReturn:
    """Be the process of a command to its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    entitle(command)
    program = str(program_of(command, None))
    code = 1
    try:
        if command[0] == sys.executable:
            sys.argv = list(command[2:])
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [program, *command[1:]]
            runpy.run_path(program, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 (what a fresh Python would print)
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def entitle(command: Sequence[str]) -> None:
    """Give this process the command line that others see: in place of its own, as far as there is room."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, as proc(5) counts: the third is the first
    title = b"\0".join(word.encode() for word in command)[: end - start - 1]
    ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)
