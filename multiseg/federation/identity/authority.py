"""The federation's authority at the centre: made, changed without losing a site, and what it signs renewed in time.

A new authority is made beside the old one, whole, and then moved in file by file. Whoever is killed in between leaves
the rest beside, and the next command moves it in. While sites still trust only the former authority, the server shows
them the bridge: the new one's certificate, signed by the former.
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
"""In which the files are moved in: what the gate shows comes first, and sites of both authorities know it."""
AUTHORITY_WARN_DAYS = 180
LINK_DAYS = 400
"""A link's certificate with less than this is made anew at the start: a server may run for a year."""


def renew(made: Home) -> None:
    """A new certificate for the server's key; an authority where there is none.

    Raises:
        FederationError: the authority's key is not there to sign with, or is another's.
        UsageError: there is a key without its authority.
    """
    with _changing(made.folder):
        if made.at(home.CA).exists():
            _sign(made, certificates.still_valid(_bridge(made)))
        elif made.at(home.CA_KEY).exists():
            raise UsageError(
                f"{made.at(home.CA_KEY)} is there without {home.CA}, its certificate: bring that back from a backup. "
                "If it is lost: --new-authority --now, and then every site needs the new one."
            )
        else:
            _make(made, b"")


def change(made: Home, now: bool = False) -> None:
    """A new authority in place of the present one, and a certificate of the server that it has signed.

    Sites that trust only the former go on connecting until that one ends.

    Args:
        now: they do not; the server's key is new, too. For an authority's key that was stolen or lost.

    Raises:
        FederationError: the former authority's key is not there to sign the bridge.
    """
    with _changing(made.folder):
        former = made.at(home.CA)
        if now or not former.exists() or certificates.days_left(former) <= 0:
            _make(made, b"", new_key=now)
            return
        if not made.at(home.CA_KEY).exists():
            raise FederationError(
                f"{made.at(home.CA_KEY)} is not there to sign the change: bring it back from where it is kept. If it "
                "is lost or stolen: --now, after which a site connects only when it has the new ca.crt."
            )
        _make(made, certificates.still_valid(_bridge(made)), bridged=True)


def end_overlap(made: Home) -> None:
    """From now on show sites that trust only a former authority nothing that they could trust.

    Raises:
        FederationError: the authority's key is not there to sign with, or is another's.
    """
    with _changing(made.folder):
        write_atomically(made.at(home.BRIDGE), b"")  # first: a renewal would show it again
        _sign(made, b"")


def settle(folder: Path) -> None:
    """Move in what a change of the authority that was cut short has left beside."""
    with _changing(folder):
        pass


def told(made: Home) -> str:
    """What the centre should know of its authority, and pass on."""
    bridged, ca = certificates.still_valid(_bridge(made)), made.at(home.CA)
    until = (
        f" Sites that trust the former one connect until {certificates.last_end(bridged):%Y-%m-%d}." if bridged else ""
    )
    return (
        f"Its authority ends on {certificates.ends(ca):%Y-%m-%d}.{until} Every site needs {ca}, and compares by "
        "telephone:\n"
        f"SHA256 Fingerprint={certificates.fingerprint(ca)}\n"
        f"Keep a copy of {made.at(home.CA_KEY)} where only you reach it."
    )


def renew_in_time(made: Home) -> str:
    """Renew the gate's certificate where it ends soon; what a person should know, "" for nothing.

    Raises:
        FederationError: it has ended, and cannot be renewed.
    """
    settle(made.folder)
    return " ".join(filter(None, (_renewed(made), _ending(made))))


def renew_link(made: Home) -> None:
    """A new certificate of the SuperLink where there is none, or it ends soon, or another signed it.

    It has nothing to do with the authority, which so can change while the server runs. Itself it cannot: what runs
    knows the old one.
    """
    certificate = made.at(home.LINK_CERTIFICATE)
    if certificate.exists() and certificates.is_own(certificate) and certificates.days_left(certificate) > LINK_DAYS:
        return
    certificates.make_own_certificate(certificate, made.at(home.LINK_KEY), LOOPBACK)


def _renewed(made: Home) -> str:
    left, key = certificates.days_left(made.at(home.CERTIFICATE)), made.at(home.CA_KEY)
    if left > certificates.RENEW_DAYS:
        return ""
    try:
        if key.exists():
            renew(made)
            return f"The server's certificate would have ended in {left:.0f} days and is renewed."
    except FederationError as error:
        if left <= 0:
            raise
        return f"The server's certificate ends in {left:.0f} days and cannot be renewed: {error}"
    if left > 0:
        return f"The server's certificate ends in {left:.0f} days: bring back {key} to renew it."
    raise FederationError(f"the server's certificate ended {-left:.0f} days ago: bring back {key}.")


def _ending(made: Home) -> str:
    left = certificates.days_left(made.at(home.CA))
    if left > AUTHORITY_WARN_DAYS:
        return ""
    when = f"ends in {left:.0f} days" if left > 0 else f"ended {-left:.0f} days ago, and no site can connect"
    return f"The authority {when}: multiseg fed enrol server {made.folder} --new-authority"


def _make(made: Home, above: bytes, *, bridged: bool = False, new_key: bool = False) -> None:
    """Make an authority whole beside the present one, then move it in."""
    making = made.at(MAKING)
    making.mkdir(mode=0o700)
    certificates.make_authority(making / home.CA, making / home.CA_KEY)
    if bridged:
        above = certificates.bridge(making / home.CA, (made.at(home.CA), made.at(home.CA_KEY))) + above
    write_atomically(making / home.BRIDGE, above)
    _sign(made, above, MAKING, new_key)
    rename_folder(making, made.at(NEXT))
    _move_in(made.folder)


def _sign(made: Home, above: bytes, where: str = ".", new_key: bool = False) -> None:
    """The server's certificate, by the authority that lies in a folder below."""
    key = f"{where}/{home.KEY}" if new_key else home.KEY
    authority, hosts = (f"{where}/{home.CA}", f"{where}/{home.CA_KEY}"), dict.fromkeys((*made.hosts, *LOOPBACK))
    certificates.make_certificate(
        made.folder, authority, (f"{where}/{home.CERTIFICATE}", key), list(hosts), above=above
    )


def _bridge(made: Home) -> bytes:
    return made.at(home.BRIDGE).read_bytes() if made.at(home.BRIDGE).exists() else b""


def _move_in(folder: Path) -> None:
    if not (folder / NEXT).exists():
        return
    for name in ORDER:
        if (folder / NEXT / name).exists():
            replace_file(folder / NEXT / name, folder / name)
    shutil.rmtree(folder / NEXT)


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Nobody else changes the authority's files meanwhile, and what a change left beside is moved in."""
    folder.mkdir(parents=True, exist_ok=True)
    home.check_account(folder)
    with (folder / ".authority.lock").open("w") as lock, locked(lock, folder / ".authority.lock"):
        shutil.rmtree(folder / MAKING, ignore_errors=True)  # of one that was killed before it was whole
        for name in ORDER:
            for half_written in folder.glob(f".{name}.*.tmp"):
                half_written.unlink()
        _move_in(folder)
        yield
