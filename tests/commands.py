"""Commands of multiseg as processes of their own that start at once.

A command that a shell starts takes seconds to import torch and zarr. These are forked from one process that imported
them before: a fresh Python without pytest in it, started once for all processes of a test run. A command has its own
process group, output and environment, and ends by a signal like any other.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import forking
import once_a_run

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
    """A line to the process that commands are forked from; they end when the line does, and that process with the
    test run."""

    def __init__(self) -> None:
        self._line = connect()
        self._codes: dict[int, int] = {}
        atexit.register(self._line.close)

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


@cache
def server() -> Server:
    """The server of this process."""
    return Server()


def connect() -> Connection[Any, Any]:
    """A line to the server of this test run, which whoever comes first starts."""
    run = once_a_run.run_number()
    address = f"\0multiseg-commands-{run}"  # no file: the name is gone with the server
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # somebody came before
                raise
        else:
            listener.listen()
            listener.set_inheritable(True)
            os.posix_spawn(  # leaves no object that would complain of a process that outlives it
                sys.executable,
                [sys.executable, __file__, str(listener.fileno()), str(run), forking.ROOM],
                {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsid=True,
            )
    line = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 10
    while line.connect_ex(address):  # between `bind` and `listen`
        if time.monotonic() > deadline:
            raise RuntimeError("the server that the first command started has died: see its output above")
        time.sleep(0.01)
    return Connection(line.detach())


def serve(listener: socket.socket, run: int) -> None:
    """Start a command for each message of a line, and report each that has ended, until the test run ends."""
    # torch's optimisers import the first when they are first used, and the log of a training the second.
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    import multiseg.store.ingest
    import multiseg.training.run  # noqa: F401

    # A collection would write into every object, at the latest when a command ends: the kernel then copies all memory.
    gc.freeze()
    end = os.pidfd_open(run)
    lines: list[Connection[Any, Any]] = []
    children: dict[int, tuple[int, Connection[Any, Any]]] = {}
    while True:
        for ready in wait([end, listener, *lines, *children]):
            if ready == end:
                return
            if ready is listener:
                lines.append(Connection(listener.accept()[0].detach()))
            elif isinstance(ready, int):
                pid, line = children.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if line in lines:
                    with suppress(ConnectionError):
                        line.send({"event": "ended", "pid": pid, "code": code})
            else:
                try:
                    pid = forked(ready.recv(), [listener, *lines])
                    children[os.pidfd_open(pid)] = pid, ready
                    ready.send({"event": "started", "pid": pid})
                except (EOFError, ConnectionError):
                    lines.remove(ready)
                    ready.close()
                    for pid, line in children.values():
                        if line is ready:
                            os.kill(pid, signal.SIGKILL)


def forked(command: dict[str, Any], ours: Sequence[socket.socket | Connection[Any, Any]]) -> int:
    """The number of the process of a command, in which none of ours is open."""
    for name in command["forks"]:
        importlib.import_module(name)
    if command["forks"]:
        gc.freeze()
    pid = os.fork()
    if not pid:
        for one in ours:
            one.close()
        become(command)
    return pid


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
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
