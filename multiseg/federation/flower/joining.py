"""Joins a federation as a site: keeps Flower's node and our executor running until someone stops them.

This process runs for weeks and does almost nothing, so it does not load torch, which takes a third of a gigabyte.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from multiseg import shown
from multiseg.errors import FederationError, MultisegError, ResourceError
from multiseg.federation.flower import flower_words
from multiseg.federation.flower.environment import NO_PROXY, OF_FLOWER
from multiseg.federation.flower.flower_words import code_in_words
from multiseg.federation.flower.liveness import Pulse
from multiseg.federation.flower.reaching import proxy_for, unreachable
from multiseg.federation.identity.signing import UNKNOWN_KEY, WRONG_CLOCK, farewell
from multiseg.federation.supervise import Child, Ending, backoff, command_path, supervise
from multiseg.files import lock_folder, write_atomically

if TYPE_CHECKING:
    from multiseg.federation.sites.site_settings import SiteSettings

MARK = "» "
"""Starts the executor's lines for a person."""
ACTIVATION_S, AGAIN_S, SLOWLY_S = 120.0, 5.0, 30.0
"""The server counts a lost node as online for 60 s, and refuses a second one until then."""
NODE_GRACE_S, WORK_GRACE_S = 15.0, 180.0
"""For the node to sign off; for the executor to end its current step."""
LOOPBACK = "127.0.0.1"
PRIVATE = 0o077
"""The umask of a site: its state names its cases, so only its account may read it."""
HANDED = "An answer was handed to the node."
"""A line of the executor's log."""
OWED_S = 45.0
"""A node sends an answer within seconds. After dropping the task of a run that has ended, it keeps the next answer
until another task comes, which may be never."""


class _RestartError(Exception):
    """Both processes have to be restarted."""


@dataclass(frozen=True)
class Member:
    """The settings of a site that joining needs."""

    site: str
    server: str
    ca: Path
    key: Path
    state: Path


def become(settings: SiteSettings, path: Path) -> NoReturn:
    """Replace this process by a slim one that joins: the checks before have loaded modules that it does not need."""
    member = {name: str(getattr(settings, name)) for name in Member.__dataclass_fields__}
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "multiseg.federation.flower.joining", str(path.resolve()), json.dumps(member)]
    os.execv(sys.executable, command)  # noqa: S606 (our own command)


def join(settings: Member, path: Path, say: Callable[[str], None]) -> None:
    """Take part until SIGINT or SIGTERM, which stop the current round after its step.

    Args:
        path: of the settings, for the executor.
        say: gets messages for a person.

    Raises:
        FederationError: the server does not know the site's key, or the executor cannot be run.
        ResourceError: the site has joined already.
    """
    with _alone(settings.state):
        secret = _secret(settings.state / "node")
        pulse = Pulse(_beats(settings), partial(unreachable, settings), say)
        times = 0
        _sign_off(settings)  # a node that was killed together with its site
        say(f"Joining as {settings.site} at {settings.server}. Logs: {settings.state / 'logs'}. Stop with Ctrl-C.")
        while True:
            began = time.monotonic()
            children = _Children(settings, path, secret, say, pulse)
            try:
                supervise([children.node(), children.executor()], children.hear, children.look)
            except _RestartError:
                times = times + 1 if time.monotonic() - began < 60 else 0
                say("Restarting the site's processes.")
                time.sleep(min(30, 2**times))
            else:
                _id_file(settings).unlink(missing_ok=True)  # the node has signed off itself
                say("Stopped. The same command joins again.")
                return


class _Children:
    """The two processes of a site, and what their output means for a person."""

    def __init__(self, settings: Member, path: Path, secret: Path, say: Callable[[str], None], pulse: Pulse) -> None:
        self._settings, self._path, self._secret, self._say, self._pulse = settings, path, secret, say, pulse
        self._address = f"{LOOPBACK}:{_free_port()}"
        self._refused = 0.0
        self._last = ""
        self._owed = 0.0

    def node(self) -> Child:
        """Flower's node, which talks to the server."""
        settings, port = self._settings, self._address.rpartition(":")[2]
        command = [
            sys.executable, "-m", "multiseg.federation.flower.node", str(_beats(settings)),
            command_path("flower-supernode"),
            "--superlink", settings.server, "--root-certificates", str(settings.ca),
            "--auth-supernode-private-key", str(settings.key),
            "--host", LOOPBACK, "--port", port,
            "--isolation", "process", "--superexec-auth-secret-file", str(self._secret),
        ]  # fmt: skip
        log = settings.state / "logs" / "node.log"
        return Child("node", command, log, self._environment(), self._after_node, NODE_GRACE_S, self._pulse.is_lost)

    def executor(self) -> Child:
        """The executor, which does the work."""
        command = [
            sys.executable, "-m", "multiseg.federation.flower.executor", str(self._path.resolve()),
            "--node", self._address, "--secret", str(self._secret),
        ]  # fmt: skip
        log = self._settings.state / "logs" / "executor.log"
        return Child("executor", command, log, self._environment(), self._after_executor, WORK_GRACE_S)

    def hear(self, name: str, line: str) -> None:
        """Handle a line of output, and pass on what is for a person."""
        if line.startswith(MARK):
            self._tell(line.removeprefix(MARK))
        elif line == HANDED:
            self._owed = time.monotonic()
        elif name == "node":
            if any(sign in line for sign in flower_words.ANSWER_IS_GONE):
                self._owed = 0.0
            if flower_words.NODE_ID in line:
                write_atomically(_id_file(self._settings), line.rpartition(":")[2].strip().encode())
            for sign, text in NODE_SAYS.items():
                if sign in line:
                    proxy = proxy_for(self._settings.server)
                    by = f" through the proxy {proxy}" if proxy else ""
                    self._tell(text.format(server=self._settings.server, site=self._settings.site, by=by))

    def look(self) -> None:
        """Restart both if the node does not send an answer: the server then asks again, and gets it at once."""
        if self._owed and time.monotonic() - self._owed > OWED_S:
            self._tell("The node does not send its answer.")
            raise _RestartError

    def _tell(self, text: str) -> None:
        if text != self._last:
            self._say(text)
        self._last = text

    def _after_node(self, ending: Ending) -> float:
        output = "\n".join(ending.last_lines)
        if code_in_words(UNKNOWN_KEY) in output:
            raise FederationError(
                f"{self._settings.server} does not know the key of {self._settings.site}, or it was revoked. Ask the "
                "coordinating centre."
            )
        if code_in_words(WRONG_CLOCK) in output:
            self._tell("The server refuses this machine's clock: set it by NTP (timedatectl set-ntp true).")
            return AGAIN_S
        if code_in_words(flower_words.STILL_ONLINE) in output:
            now = time.monotonic()
            self._refused = self._refused or now
            _sign_off(self._settings)
            if now - self._refused > ACTIVATION_S:
                self._tell(
                    f"{self._settings.server} has refused {self._settings.site} for more than {ACTIVATION_S:.0f} s; "
                    "retrying. Either another machine uses its key, too, or the server does not know it: ask the "
                    "coordinating centre."
                )
                return SLOWLY_S
            self._tell("The server still counts the last connection of this site as open; retrying.")
            return AGAIN_S
        self._refused = 0.0
        _sign_off(self._settings)  # the node's own sign-off may not have arrived
        pause = backoff(ending)
        reason = next((text for sign, text in TLS_SAYS.items() if sign in output), f"code {ending.code}, see node.log")
        self._tell(f"The connection ended ({reason}); retrying in {pause:.0f} s.")
        return pause

    def _after_executor(self, ending: Ending) -> float:
        if ending.code in (2, 3, 5):  # the exit codes of our own errors
            last = ending.last_lines[-1] if ending.last_lines else ending.code
            raise FederationError(f"the executor cannot run: {last}")
        self._tell(f"The executor died (code {ending.code}): see executor.log.")
        # The node would wait for its answer for a minute, or for ever if it died while handing one over.
        raise _RestartError

    def _environment(self) -> Mapping[str, str]:
        around = [os.environ[name] for name in NO_PROXY if os.environ.get(name)]
        home = {"FLWR_HOME": str(self._settings.state / "node" / "flwr")}
        return OF_FLOWER | home | dict.fromkeys(NO_PROXY, ",".join([*around, LOOPBACK]))


NODE_SAYS = {
    flower_words.NODE_ID: "Connected to {server} as {site}; waiting for the server's tasks.",
    flower_words.TRIES_AGAIN: "Cannot reach {server}{by}; retrying.",
    flower_words.CONNECTED_AGAIN: "Connected again to {server}.",
    "413 Request Entity": "{server} refuses the answer of {site} as too large: ask the coordinating centre.",
}
TLS_SAYS = {
    "certificate has expired": "the server's certificate has expired",
    "Hostname mismatch": "the server's certificate is not for this name",
    "CERTIFICATE_VERIFY_FAILED": "the server is not the one of ca.crt",
    "407 Proxy": "the proxy asks for a name and a password, see --check",
    "ProxyError": "the proxy blocks it, see --check",
    "connecting again, so that": "a message was lost on the way, and is requested again",
    flower_words.CLOSED_BY_SERVER: "the server closed it: is the key revoked?",
}


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Lock the site's state, so that it does not join twice."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot create {state}: {error.strerror}.") from error
    with lock_folder(state / ".joined", "this site has joined already."):
        yield


def _secret(folder: Path) -> Path:
    """Make a new secret for node and executor that only this account can read."""
    write_atomically(folder / "secret", secrets.token_hex(48).encode(), 0o600)
    return folder / "secret"


def _beats(settings: Member) -> Path:
    """The file with the time of the node's last answered call."""
    return settings.state / "node" / "beat"


def _id_file(settings: Member) -> Path:
    return settings.state / "node" / "id"


def _sign_off(settings: Member) -> None:
    """Tell the server that the last node of this site is gone. That is certain, since we hold the lock."""
    file = _id_file(settings)
    try:
        number = int(file.read_text())
    except (OSError, ValueError):
        return
    if farewell(settings, number):
        file.unlink()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def main(arguments: list[str]) -> int:
    """Join: `python -m multiseg.federation.flower.joining SITE.TOML MEMBER`, the latter as JSON."""
    path, settings = arguments[0], json.loads(arguments[1])
    os.umask(PRIVATE)
    paths = {name: Path(settings[name]) for name in ("ca", "key", "state")}
    member = Member(settings["site"], settings["server"], **paths)
    try:
        join(member, Path(path), _say)
    except MultisegError as error:
        _say(f"{type(error).__name__}: {error}")
        return error.exit_code
    return 0


def _say(line: str) -> None:
    sys.stderr.write(shown.line(line) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
