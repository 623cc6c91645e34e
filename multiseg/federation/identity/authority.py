"""The federation's certificate authority at the centre: makes it, changes it without losing sites, renews certificates.

A new authority is first made completely in a temporary folder, and then moved in file by file. After a kill in between
the next command moves in the rest. While sites still trust only the former authority, the server shows them the bridge:
the new authority's certificate, signed by the former one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multiseg.errors import FederationError, UsageError
from multiseg.federation.identity import certificates, home
from multiseg.federation.identity.home import Home
from multiseg.files import rename_folder, replace_file, write_atomically
from multiseg.locks import locked

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAKING, NEXT = ".authority.making", "authority.next"
ORDER = (home.KEY, home.CERTIFICATE, home.BRIDGE, home.CA_KEY, home.CA)
"""Files are moved in this order: first what the gate shows, which sites of both authorities accept."""
AUTHORITY_WARN_DAYS = 180
LINK_DAYS = 400
"""A link's certificate with less than this is replaced at the start: a server may run for a year."""


def renew(server: Home) -> None:
    """Make a new certificate for the server's key, and an authority if there is none.

    Raises:
        FederationError: the authority's key is missing, or belongs to another authority.
        UsageError: there is a key without its authority.
    """
    with _changing(server.folder):
        if server.at(home.CA).exists():
            _sign(server, certificates.still_valid(_bridge(server)))
        elif server.at(home.CA_KEY).exists():
            raise UsageError(
                f"{server.at(home.CA_KEY)} exists without {home.CA}, its certificate: restore that from a backup. If "
                "it is lost: --new-authority --now, and then every site needs the new one."
            )
        else:
            _make(server, b"")


def change(server: Home, now: bool = False) -> None:
    """Replace the authority, and let the new one sign the server's certificate.

    Sites that trust only the former authority can connect until that one ends.

    Args:
        now: they cannot, and the server's key is replaced, too: for a stolen or lost key of the authority.

    Raises:
        FederationError: the former authority's key is missing, so it cannot sign the bridge.
    """
    with _changing(server.folder):
        former = server.at(home.CA)
        if now or not former.exists() or certificates.days_left(former) <= 0:
            _make(server, b"", new_key=now)
            return
        if not server.at(home.CA_KEY).exists():
            raise FederationError(
                f"{server.at(home.CA_KEY)} is missing and cannot sign the change: restore it from where it is kept. If "
                "it is lost or stolen: --now, after which a site connects only with the new ca.crt."
            )
        _make(server, certificates.still_valid(_bridge(server)), bridged=True)


def end_overlap(server: Home) -> None:
    """Stop showing the bridge, so that sites that trust only a former authority can no longer connect.

    Raises:
        FederationError: the authority's key is missing, or belongs to another authority.
    """
    with _changing(server.folder):
        write_atomically(server.at(home.BRIDGE), b"")  # first, or a renewal would show it again
        _sign(server, b"")


def settle(folder: Path) -> None:
    """Complete a change of the authority that was interrupted."""
    with _changing(folder):
        pass


def describe_authority(server: Home) -> str:
    """What the centre should know about its authority, and pass on to sites."""
    bridged, ca = certificates.still_valid(_bridge(server)), server.at(home.CA)
    until = (
        f" Sites that trust the former one connect until {certificates.last_end(bridged):%Y-%m-%d}." if bridged else ""
    )
    return (
        f"Its authority ends on {certificates.ends(ca):%Y-%m-%d}.{until} Every site needs {ca}; compare by telephone:\n"
        f"SHA256 Fingerprint={certificates.fingerprint(ca)}\n"
        f"Keep a copy of {server.at(home.CA_KEY)} where only you can reach it."
    )


def renew_in_time(server: Home) -> str:
    """Renew the gate's certificate if it ends soon; notes for a person, "" for none.

    Raises:
        FederationError: it has ended, and cannot be renewed.
    """
    settle(server.folder)
    return " ".join(filter(None, (_renewed(server), _ending(server))))


def renew_link(server: Home) -> None:
    """Replace the SuperLink's certificate if it is missing, ends soon, or is not self-signed.

    It does not depend on the authority, which can therefore change while the server runs. This certificate cannot:
    running processes trust the old one.
    """
    certificate = server.at(home.LINK_CERTIFICATE)
    if certificate.exists() and certificates.is_own(certificate) and certificates.days_left(certificate) > LINK_DAYS:
        return
    certificates.make_own_certificate(certificate, server.at(home.LINK_KEY), LOOPBACK)


def _renewed(server: Home) -> str:
    left, key = certificates.days_left(server.at(home.CERTIFICATE)), server.at(home.CA_KEY)
    if left > certificates.RENEW_DAYS:
        return ""
    try:
        if key.exists():
            renew(server)
            return f"The server's certificate would have ended in {left:.0f} days and is renewed."
    except FederationError as error:
        if left <= 0:
            raise
        return f"The server's certificate ends in {left:.0f} days and cannot be renewed: {error}"
    if left > 0:
        return f"The server's certificate ends in {left:.0f} days: restore {key} to renew it."
    raise FederationError(f"the server's certificate ended {-left:.0f} days ago: restore {key}.")


def _ending(server: Home) -> str:
    left = certificates.days_left(server.at(home.CA))
    if left > AUTHORITY_WARN_DAYS:
        return ""
    when = f"ends in {left:.0f} days" if left > 0 else f"ended {-left:.0f} days ago, and no site can connect"
    return f"The authority {when}: multiseg fed enrol server {server.folder} --new-authority"


def _make(server: Home, above: bytes, *, bridged: bool = False, new_key: bool = False) -> None:
    """Make a complete authority in a temporary folder, then move it in."""
    making = server.at(MAKING)
    making.mkdir(mode=0o700)
    certificates.make_authority(making / home.CA, making / home.CA_KEY)
    if bridged:
        above = certificates.bridge(making / home.CA, (server.at(home.CA), server.at(home.CA_KEY))) + above
    write_atomically(making / home.BRIDGE, above)
    _sign(server, above, MAKING, new_key)
    rename_folder(making, server.at(NEXT))
    _move_in(server.folder)


def _sign(server: Home, above: bytes, where: str = ".", new_key: bool = False) -> None:
    """Sign the server's certificate with the authority in a subfolder."""
    key = f"{where}/{home.KEY}" if new_key else home.KEY
    authority, hosts = (f"{where}/{home.CA}", f"{where}/{home.CA_KEY}"), dict.fromkeys((*server.hosts, *LOOPBACK))
    certificates.make_certificate(
        server.folder, authority, (f"{where}/{home.CERTIFICATE}", key), list(hosts), above=above
    )


def _bridge(server: Home) -> bytes:
    return server.at(home.BRIDGE).read_bytes() if server.at(home.BRIDGE).exists() else b""


def _move_in(folder: Path) -> None:
    if not (folder / NEXT).exists():
        return
    for name in ORDER:
        if (folder / NEXT / name).exists():
            replace_file(folder / NEXT / name, folder / name)
    shutil.rmtree(folder / NEXT)


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Lock the authority's files, after completing an interrupted change."""
    folder.mkdir(parents=True, exist_ok=True)
    home.check_account(folder)
    with (folder / ".authority.lock").open("w") as lock, locked(lock, folder / ".authority.lock"):
        shutil.rmtree(folder / MAKING, ignore_errors=True)  # of a change that was killed too early to complete
        for name in ORDER:
            for half_written in folder.glob(f".{name}.*.tmp"):
                half_written.unlink()
        _move_in(folder)
        yield
