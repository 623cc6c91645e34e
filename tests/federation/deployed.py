"""A whole federation as real processes on loopback, for tests: started, disturbed, looked at, and taken down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
from commands import Command

from multiseg.config import checked, training_settings
from multiseg.federation.centre.experiment_folder import read_history
from multiseg.federation.flower.submit import status
from multiseg.federation.local_deployment import MULTISEG, prepared
from multiseg.federation.plan import FederationOptions, drop_ignored
from multiseg.federation.simulation import SimulationMachine, simulate

QUICK = {
    "seed": 3,
    "model": {"widths": [8, 16], "dropout": 0.1},
    "stream": {"batch_size": 2, "draw": {"patch": [16, 16, 16]}},
    "augment": {"preset": "none"},
    "fit": {"learning_rate": 1e-3},
    "schedule": {"rounds": 3, "validation_cases": 1},
}
"""A network so small that the processes around it are what takes time."""


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("FLWR")}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"

IMPORTED = (
    "multiseg.federation.flower.executor",
    "multiseg.federation.flower.server_app",
    "flwr.supercore.cli.flower_superexec",
    "flwr.superlink.cli",
    "flwr.supernode.cli",
)
"""What the processes of a deployment import, once for all."""

HEARTBEATS = {
    f"flwr.supercore.{module}:HEARTBEAT_DEFAULT_INTERVAL": 15
    for module in ("heartbeat", "corestate.sql_corestate")  # who sends them, and who misses them
}
"""Seconds; twice as long without one, and a run is lost. Flower's own are 30."""

QUICKLY = HEARTBEATS | {"multiseg.federation.centre.exchange:PAUSE_S": 3.0}
"""What a server waits for less long than it would."""


def until(seconds: float, what: str, is_so: Callable[[], Any], pause_s: float = 0.2) -> Any:
    """Wait until it is so; what it came to."""
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for: {what}"
        time.sleep(pause_s)
    return found


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes that a process started, and those that these did."""
    found: list[int] = []
    left = [pid]
    while left:
        own = children(left.pop())
        found += own
        left += own
    return found


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


class Process:
    """A command of ours in a session of its own, and what it says in a file.

    It is forked from a process that has imported multiseg, as are all that it starts; one that is wrapped is started as
    a shell would, and so is what it starts.
    """

    def __init__(
        self,
        arguments: list[str],
        said: Path,
        wrap: tuple[str, ...] = (),
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self.said = said
        said.touch()
        self.popen: Command | subprocess.Popen[bytes]
        if not wrap:
            self.popen = Command(arguments, said, ENVIRONMENT, constants=constants, forks=IMPORTED)
            return
        with said.open("a") as file:
            self.popen = subprocess.Popen(
                [*wrap, *MULTISEG, *arguments], stdout=file, stderr=file, start_new_session=True, env=ENVIRONMENT
            )

    def part(self, text: str) -> int:
        """The process of which the command holds a text; 0 where there is none now."""
        return next((pid for pid in descendants(self.popen.pid) if text in command_of(pid)), 0)

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self, number: int = signal.SIGINT, seconds: float = 60) -> int:
        """Ask it to end, and wait until it has; the exit code."""
        every = descendants(self.popen.pid)
        if self.popen.poll() is None:
            self.send(number)
        try:
            return self.popen.wait(seconds)
        finally:
            for pid in [self.popen.pid, *every]:  # nothing is left behind, whatever went wrong
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Deployment:
    """A server's folder, a kit for each site, and the processes of both."""

    def __init__(self, folder: Path, stores: dict[str, str], host: str = "127.0.0.1") -> None:
        self.folder, self.stores = folder, stores
        self.home = prepared(folder, stores, host, device="cpu", least=1).home
        self.server: Process | None = None
        self.sites: dict[str, Process] = {}

    def serve(self) -> Process:
        self.server = Process(["fed", "serve", str(self.home)], self.folder / "serve.txt", constants=QUICKLY)
        return self.server

    def join(self, name: str, wrap: tuple[str, ...] = ()) -> Process:
        self.sites[name] = Process(
            ["fed", "join", str(self.folder / name / "site.toml")], self.folder / f"{name}.txt", wrap
        )
        return self.sites[name]

    def up(self) -> None:
        """Start everything, and wait until all sites are there."""
        self.serve()
        until(60, "the server is ready", lambda: "Ready." in (self.folder / "serve.txt").read_text())
        for name in self.stores:
            self.join(name)
        every = f"{len(self.stores)} of {len(self.stores)} sites are online"
        until(90, "all sites are online", lambda: every in (self.folder / "serve.txt").read_text())

    def status(self) -> dict[str, Any]:
        """What `fed status --json` prints; the command itself would take seconds to import what it needs."""
        return status(self.home)

    def submit(self, options: FederationOptions) -> None:
        file = self.folder / f"{options.experiment}.toml"
        file.write_text(tomli_w.dumps(drop_ignored(asdict(options))), encoding="utf-8")
        said = self.folder / f"{options.experiment}.txt"
        assert Process(["fed", "run", str(self.home), str(file)], said).popen.wait(120) == 0, said.read_text()

    def events(self, experiment: str) -> list[dict[str, Any]]:
        """What the run's log says so far."""
        with suppress(FileNotFoundError):
            text = (self.home / "runs" / experiment / "log.jsonl").read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return []

    def wait_round(self, experiment: str, number: int, seconds: float = 120) -> None:
        """Wait until a round has begun."""
        until(
            seconds, f"round {number} of {experiment}",
            lambda: any(one.get("event") == "Began" and one["round"] == number for one in self.events(experiment)),
        )  # fmt: skip

    def finished(self, experiment: str, seconds: float = 240) -> dict[str, Any]:
        """Wait until a run has ended whole; its history."""
        folder = self.home / "runs" / experiment

        def is_done() -> bool:
            return (folder / "state.safetensors").is_file() and "test" in read_history(folder)["final"]

        until(seconds, f"{experiment} ends", is_done, pause_s=1.0)
        return read_history(folder)

    def weights(self, experiment: str) -> bytes:
        return tensors_of(self.home / "runs" / experiment / "last.safetensors")

    def down(self) -> None:
        for process in [*self.sites.values(), *([self.server] if self.server else [])]:
            with suppress(subprocess.TimeoutExpired):
                process.end(signal.SIGTERM, 30)


def tensors_of(file: Path) -> bytes:
    """The bytes of a safetensors file's tensors, without its description."""
    data = file.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def options_for(experiment: str, sites: tuple[str, ...], steps: int, **tables: Any) -> FederationOptions:
    """A small run."""
    settings = {**QUICK, "experiment": experiment, "sites": list(sites), "local": {"steps": steps}, **tables}
    return checked(training_settings(settings), FederationOptions)


def undisturbed(options: FederationOptions, stores: dict[str, str], out: Path) -> bytes:
    """The weights that the run comes to where nothing happens."""
    wanted = {name: stores[name] for name in (*options.sites, *options.held_out)}
    result = simulate(options, wanted, out, machine=SimulationMachine("cpu", least=1))
    assert result.finished
    return tensors_of(out / "last.safetensors")


@contextmanager
def deployment(folder: Path, stores: dict[str, str]) -> Iterator[Deployment]:
    """One that is up, and is taken down whatever happens."""
    made = Deployment(folder, stores)
    try:
        made.up()
        yield made
    finally:
        made.down()
