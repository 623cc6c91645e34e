"""Runs a federation as real processes on this machine, with keys and TLS: for the demo, benchmarks and tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from multiseg.errors import FederationError
from multiseg.federation.flower.control import controlling
from multiseg.federation.identity.enrol import enrol_server, enrol_site
from multiseg.federation.identity.home import read_home, write_home
from multiseg.federation.sites.policy import Leaves
from multiseg.processes import die_with

MULTISEG = (sys.executable, "-m", "multiseg")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Sites that share a machine would wait for each other's threads. The user's own setting wins."""
START_S, STOP_S, LOOK_S = 180.0, 60.0, 0.5


@dataclass(frozen=True)
class LocalDeployment:
    """The server's folder, and each site's settings."""

    folder: Path
    home: Path
    sites: Mapping[str, Path]


def prepared(
    folder: Path,
    stores: Mapping[str, str],
    host: str = "127.0.0.1",
    device: str = "auto",
    least: int = Leaves.least,
) -> LocalDeployment:
    """Enrol a server, on ports that are free now, and fill in a kit for every site.

    Args:
        least: see `policy.Leaves`.

    Raises:
        UsageError: the folder holds a deployment already.
    """
    home = folder / "centre"
    ports = dict(zip(("port", "superlink_port", "metrics_port"), _free_ports(3), strict=True))
    write_home(replace(enrol_server(home, [host], ports), min_free_gib=0.0))
    sites = {}
    for name, url in stores.items():
        kit, _ = enrol_site(home, name, folder / name)
        text = (kit / "site.toml").read_text(encoding="utf-8")
        for blank, filled in (
            ('store = ""', f"store = {json.dumps(url)}"),
            ('device = "auto"', f"device = {json.dumps(device)}\nmin_free_gib = 0.0"),
            ("workers = 1", "workers = 0"),
        ):
            text = text.replace(blank, filled)
        sites[name] = kit / "site.toml"
        sites[name].write_text(f"{text}\n[leaves]\nleast = {least}\n", encoding="utf-8")
    return LocalDeployment(folder, home, sites)


@contextmanager
def staged(deployment: LocalDeployment) -> Iterator[None]:
    """Start server and sites, wait until all are online, and stop them at the end. Their output goes to the folder.

    Raises:
        FederationError: one of them ended, or did not come online in time.
    """
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        started["centre"] = _start(["fed", "serve", str(deployment.home)], deployment.folder / "centre.txt")
        for name, settings in deployment.sites.items():
            started[name] = _start(["fed", "join", str(settings)], deployment.folder / f"{name}.txt")
        _wait(deployment, started)
        yield
    finally:
        for process in reversed(started.values()):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started.values()):
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()


def _start(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("a") as file:
        return subprocess.Popen(  # noqa: S603 (our own commands)
            [*MULTISEG, *arguments],
            env=ONE_THREAD | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),
        )


def _wait(deployment: LocalDeployment, started: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Wait until the server counts every site as online."""
    deadline = time.monotonic() + START_S
    online: set[str] = set()
    while not set(deployment.sites) <= online:
        ended = [name for name, process in started.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            missing = ended or sorted(set(deployment.sites) - online)
            output = (deployment.folder / f"{(ended or ['centre'])[0]}.txt").read_text(errors="replace")[-500:]
            raise FederationError(f"{', '.join(missing)} did not start; last output in {deployment.folder}: {output}")
        time.sleep(LOOK_S)
        with suppress(FederationError), controlling(read_home(deployment.home)) as control:
            online = {node.name for node in control.nodes() if node.status == "online"}


def _free_ports(num: int) -> list[int]:
    """Loopback ports that are not in use."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num)]
        return [int(probe.getsockname()[1]) for probe in probes]
