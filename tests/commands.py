"""Commands of multiseg as processes of their own that start at once.

A command that a shell starts takes seconds to import torch and zarr. These are forked from one process that imported
them before: a fresh Python without pytest in it, started once for each process of the test run. A command has its own
process group, output and environment, and ends by a signal like any other.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import forking

from multiseg.cli.app import main
from multiseg.federation.supervise import die_with


class Command:
    """`multiseg ARGUMENTS`, running; as much of `subprocess.Popen` as tests need."""

    def __init__(
        self,
        arguments: list[str],
        output: Path | None = None,
        environment: Mapping[str, str] | None = None,
        script: Path | None = None,
        constants: Mapping[str, Any] | None = None,
        forks: Sequence[str] = (),
    ) -> None:
        """Args:
        output: the file that its output and errors are appended to; thrown away where None.
        environment: this process's own where None.
        script: a file of Python that runs instead of multiseg.
        constants: values for constants of modules, by "module:name", which only this process has.
        forks: the programs of Python that it starts are forked from it (see `forking`); these modules, which they need,
            are imported before, once for all commands.
        """
        self.returncode: int | None = None
        self._server = server()
        self.pid = self._server.start(
            {
                "arguments": arguments,
                "output": str(output or os.devnull),
                "environment": dict(os.environ if environment is None else environment),
                "script": str(script or ""),
                "folder": str(Path.cwd()),
                "constants": dict(constants or {}),
                "forks": list(forks),
            }
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.code_of(self.pid)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("multiseg", timeout)
            self._server.listen(1)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Server:
    """The process that commands are forked from; it ends when the line to it does."""

    def __init__(self) -> None:
        self._line, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), forking.ROOM],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
        )
        theirs.close()
        self._codes: dict[int, int] = {}
        atexit.register(self.end)

    def start(self, command: dict[str, Any]) -> int:
        self._line.send(command)
        while (message := self._line.recv())["event"] != "started":
            self._codes[message["pid"]] = message["code"]
        return int(message["pid"])

    def code_of(self, pid: int) -> int | None:
        """The exit code of a command that ended, or minus the signal that ended it."""
        while self._line.poll():
            message = self._line.recv()
            self._codes[message["pid"]] = message["code"]
        return self._codes.get(pid)

    def listen(self, seconds: float) -> None:
        """Wait until there may be news of a command."""
        self._line.poll(seconds)

    def end(self) -> None:
        self._line.close()
        self._process.wait()


@cache
def server() -> Server:
    """The server of this process."""
    return Server()


def serve(line: Connection[Any, Any]) -> None:
    """Start a command for each message, and report each that has ended."""
    # torch's optimisers import the first when they are first used, and the log of a training the second.
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    import multiseg.store.ingest
    import multiseg.training.run  # noqa: F401

    # A collection would write into every object, at the latest when a command ends: the kernel then copies all memory.
    gc.freeze()
    children: dict[int, int] = {}
    while True:
        for ready in wait([line, *children]):
            if isinstance(ready, int):
                pid = children.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                line.send({"event": "ended", "pid": pid, "code": code})
                continue
            try:
                command = line.recv()
            except EOFError:
                return
            for name in command["forks"]:
                importlib.import_module(name)
            if command["forks"]:
                gc.freeze()
            pid = os.fork()
            if not pid:
                line.close()
                become(command)
            children[os.pidfd_open(pid)] = pid
            line.send({"event": "started", "pid": pid})


def become(command: dict[str, Any]) -> None:
    """Turn this process into a command, and end with its exit code, or when the server does."""
    os.setsid()
    die_with(os.getppid())
    # A shell that puts the tests into the background has their processes ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    for place, value in command["constants"].items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    sys.argv = [command["script"] or "multiseg", *command["arguments"]]
    forking.entitle(sys.argv)
    if command["forks"]:
        forking.install()
    if command["script"]:
        # As python does, with the script's own folder first.
        sys.path.insert(0, str(Path(command["script"]).parent))
        runpy.run_path(command["script"], run_name="__main__")
        sys.exit()
    try:
        main()
    except SystemExit as end:
        end_at_once(end)


def end_at_once(end: SystemExit) -> None:
    """End as Python does, but leave all modules as they are: to take them apart takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(end.code if isinstance(end.code, int) else bool(end.code))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
