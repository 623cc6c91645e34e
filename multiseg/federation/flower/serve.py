"""Runs the coordinating centre: keeps the SuperLink, the processes of runs, the gate and a steward running."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from multiseg.errors import ResourceError, UsageError
from multiseg.federation.flower.environment import NO_PROXY, OF_FLOWER
from multiseg.federation.identity import home
from multiseg.federation.identity.authority import renew_in_time, renew_link
from multiseg.federation.identity.home import Home, read_home
from multiseg.federation.supervise import Child, Ending, backoff, command_path, supervise
from multiseg.files import lock_folder

SLACK_BYTES = 256 * 2**20
"""A database with this much free space is packed before the start: Flower's never shrinks."""
NEEDED = (home.CA, home.CERTIFICATE, home.KEY, home.LINK_CERTIFICATE, home.LINK_KEY, home.SECRET)


def serve(folder: Path, say: Callable[[str], None]) -> None:
    """Run the server of a folder until SIGINT or SIGTERM.

    Args:
        say: gets messages for a person.

    Raises:
        UsageError: it is not a server's folder, or a file is missing.
        ResourceError: another process serves it, a port is in use, or the disk is full.
        FederationError: a certificate has ended and cannot be renewed.
    """
    server = read_home(folder)
    with lock_folder(server.at(home.LOCK), "it serves this folder, and one is enough."):
        check_files(server)
        renew_link(server)
        if text := renew_in_time(server):
            say(text)
        check_room(server)
        check_ports(server)
        pack(server.at(home.DATABASE))
        say(f"Hospitals dial {server.public} (listening on {server.listen}:{server.port}).")
        say(f"Logs: {server.at(home.LOGS)}. Metrics for Prometheus: http://127.0.0.1:{server.metrics_port}/metrics")
        supervise(children(server, say), lambda name, line: say(line) if name == "steward" else None)
    say("Stopped. A run that was active is resumed when the server starts again.")


def children(server: Home, say: Callable[[str], None]) -> list[Child]:
    """The processes, in the order in which they start."""

    def after(ending: Ending) -> float:
        pause = backoff(ending)
        last = next((line for line in reversed(ending.last_lines) if line.strip()), "")
        say(f"{ending.name} ended with code {ending.code} ({last[:200]}). It restarts in {pause:.0f} s.")
        return pause

    here = Path(command_path("flower-superlink")).parent
    environment = {
        **OF_FLOWER,
        **NO_PROXY,
        "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # Flower finds its commands there
        "FLWR_HOME": str(server.at("flower")),
        "MULTISEG_RUNS": str(server.at(home.RUNS)),
    }
    superlink = [
        sys.executable, "-m", "multiseg.federation.flower.superlink", command_path("flower-superlink"),
        "--host", "127.0.0.1", "--port", str(server.superlink_port),
        "--ssl-ca-certfile", str(server.at(home.LINK_CERTIFICATE)),
        "--ssl-certfile", str(server.at(home.LINK_CERTIFICATE)),
        "--ssl-keyfile", str(server.at(home.LINK_KEY)),
        "--enable-supernode-auth", "--isolation", "process",
        "--superexec-auth-secret-file", str(server.at(home.SECRET)),
        "--database", str(server.at(home.DATABASE)),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    superexec = [
        sys.executable, "-m", "multiseg.federation.flower.superexec", command_path("flower-superexec"),
        "--runtime-api-address", server.superlink,
        "--root-certificates", str(server.at(home.LINK_CERTIFICATE)),
        "--superexec-auth-secret-file", str(server.at(home.SECRET)),
    ]  # fmt: skip
    commands = {
        "superlink": superlink,
        "superexec": superexec,
        "gate": [sys.executable, "-m", "multiseg.federation.gate.gate", str(server.folder)],
        "steward": [sys.executable, "-m", "multiseg.federation.flower.steward", str(server.folder)],
    }
    logs = server.at(home.LOGS)
    return [Child(name, command, logs / f"{name}.log", environment, after) for name, command in commands.items()]


def check_files(server: Home) -> None:
    """Raises UsageError if a file of the server is missing."""
    missing = [name for name in NEEDED if not server.at(name).exists()]
    if missing:
        raise UsageError(f"{server.folder} lacks {', '.join(missing)}: run multiseg fed enrol server {server.folder}")


def check_room(server: Home) -> None:
    """Raises ResourceError if the disk is nearly full."""
    free = shutil.disk_usage(server.folder).free / 2**30
    if free < server.min_free_gib:
        raise ResourceError(
            f"{free:.1f} GiB are free under {server.folder}, but min_free_gib in {home.SETTINGS} asks for "
            f"{server.min_free_gib}: free some space, or lower it."
        )


def check_ports(server: Home) -> None:
    """Raises ResourceError if another program uses one of the ports."""
    for name in ("port", "superlink_port", "metrics_port"):
        host, port = server.listen if name == "port" else "127.0.0.1", getattr(server, name)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ResourceError(
                    f"cannot listen on {host}:{port} ({error.strerror}): end the program that uses it, or set another "
                    f"{name} in {server.at(home.SETTINGS)}."
                ) from error


def pack(database: Path) -> None:
    """Free the unused space of a database, if it is large."""
    if not database.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as opened:
        free, size = (opened.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
        if free * size > SLACK_BYTES:
            opened.execute("PRAGMA auto_vacuum = INCREMENTAL")  # lets the SuperLink do it later while it runs
            opened.execute("VACUUM")
