"""The coordinating centre's folder: its settings, and the names of its keys, databases and logs."""

from __future__ import annotations

import os
import pwd
import tomllib
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import tomli_w

from multiseg.errors import UsageError
from multiseg.federation import addresses
from multiseg.files import write_atomically

HINT = "Make it with: multiseg fed enrol server HOME --host NAME"


@dataclass(frozen=True)
class Home:
    """The settings in `home.toml`, and its folder.

    Attributes:
        hosts: names and addresses by which hospitals reach the server; its certificate holds them.
        port: the public one, of the gate.
        listen: address that the gate listens on.
        superlink_port: of Flower's SuperLink, on loopback.
        metrics_port: of the Prometheus text, on loopback.
        min_free_gib: with less free disk under the folder the server does not start.
        max_answer_mib: limit for one answer of a site, if lower than the limit from the run's network; 0 for none.
    """

    folder: Path
    hosts: tuple[str, ...]
    port: int = 8443
    listen: str = "0.0.0.0"  # noqa: S104 (hospitals have to reach it)
    superlink_port: int = 8000
    metrics_port: int = 9400
    min_free_gib: float = 5.0
    max_answer_mib: float = 0.0

    def at(self, name: str) -> Path:
        """A file or folder in it."""
        return self.folder / name

    @property
    def superlink(self) -> str:
        """Address of the SuperLink."""
        return f"127.0.0.1:{self.superlink_port}"

    @property
    def public(self) -> str:
        """Address that hospitals dial."""
        return addresses.joined(self.hosts[0], self.port)


CA, CA_KEY = "ca.crt", "ca.key"
BRIDGE = "bridge.crt"
"""The authority's certificate, signed by a former one: shown to sites that trust only the former."""
CERTIFICATE, KEY = "server.crt", "server.key"
LINK_CERTIFICATE, LINK_KEY = "link.crt", "link.key"
SECRET, SITES, SETTINGS = "superexec.secret", "sites.json", "home.toml"
DATABASE, LOGS, RUNS, TRAFFIC, LOCK = "link.db", "logs", "runs", "gate.json", ".serving"

KINDS: dict[str, tuple[type, ...]] = {
    "hosts": (list,),
    "listen": (str,),
    **dict.fromkeys(("port", "superlink_port", "metrics_port"), (int,)),
    **dict.fromkeys(("min_free_gib", "max_answer_mib"), (int, float)),
}


def check_account(folder: Path) -> None:
    """Raises UsageError if root would write into the folder of another account, which could not read the files."""
    owner = folder.stat().st_uid
    if os.geteuid() or not owner:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    raise UsageError(
        f"{folder} belongs to the account {name}, which could not read what root writes there: run the same command "
        f"with sudo -u {name}."
    )


def read_home(folder: Path) -> Home:
    """The settings of a server; UsageError if they are missing or invalid."""
    path = folder / SETTINGS
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is not a server's folder: it has no {SETTINGS}. {HINT}") from None
    except OSError as error:
        raise UsageError(f"{path} could not be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    for name, value in settings.items():
        if name not in KINDS:
            raise UsageError(f"{path}: {name} = {value!r} is unknown. It may hold: {', '.join(KINDS)}.")
        if isinstance(value, bool) or not isinstance(value, KINDS[name]):
            kinds = " or ".join(kind.__name__ for kind in KINDS[name])
            raise UsageError(f"{path}: {name} = {value!r} is not of the type {kinds}.")
    numbers = {name: float(settings.get(name, getattr(Home, name))) for name in ("min_free_gib", "max_answer_mib")}
    home = Home(folder.absolute(), **{**settings, "hosts": tuple(map(str, settings.get("hosts", ()))), **numbers})
    try:
        return checked(home)
    except UsageError as error:
        raise UsageError(f"{path}: {error} Correct it there, then: multiseg fed enrol server {folder}") from error


def checked(home: Home) -> Home:
    """The settings, with hosts as they are dialled; UsageError if they are invalid."""
    ports = (home.port, home.superlink_port, home.metrics_port)
    if not home.hosts:
        raise UsageError(f"{home.folder} has no host. {HINT}")
    if not home.max_answer_mib >= 0:
        raise UsageError(f"max_answer_mib is {home.max_answer_mib}: give 0 for no limit of its own, or more.")
    check_listen(home.listen)
    if len(set(ports)) < len(ports) or not all(0 < port < 65536 for port in ports):
        raise UsageError(f"ports {ports} (public, SuperLink, metrics): give three different ones from 1 to 65535.")
    return replace(home, hosts=tuple(dict.fromkeys(map(addresses.host, home.hosts))))


def check_listen(listen: str) -> None:
    """Raises UsageError unless the gate can listen on this: an IP address of this machine, or 0.0.0.0 for all."""
    try:
        ip_address(listen)
    except ValueError:
        raise UsageError(f'listen is {listen!r}: give an IP address of this machine, or "0.0.0.0" for all.') from None


def write_home(home: Home) -> None:
    """Write `home.toml`."""
    settings = {name: getattr(home, name) for name in KINDS}
    write_atomically(home.at(SETTINGS), tomli_w.dumps({**settings, "hosts": list(home.hosts)}).encode())
