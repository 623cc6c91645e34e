"""The federation's authority: changed while sites trust the former one, and by one that is killed halfway."""

import fcntl
import ssl
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from multiseg.cli.app import run
from multiseg.errors import FederationError, UsageError
from multiseg.federation.identity import authority, certificates
from multiseg.federation.identity.enrol import enrol_server, enrol_site
from multiseg.federation.identity.home import Home, read_home

HOST = "fed.example.org"


@pytest.fixture
def centre(tmp_path: Path) -> Path:
    enrol_server(tmp_path / "centre", [HOST], {})
    return tmp_path / "centre"


def trusting(*files: Path) -> ssl.SSLContext:
    """What a site trusts: as strictly as Python 3.13 looks at it, but every chain must end in an authority."""
    context = ssl.create_default_context(cadata="".join(file.read_text() for file in files))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def connects(home: Path, trust: ssl.SSLContext, files: tuple[str, str] = ("server.crt", "server.key")) -> bool:
    """Whether a site that trusts so much takes what a server that starts now shows it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*(home / file for file in files))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    name = HOST if files[0] == "server.crt" else "127.0.0.1"
    client = trust.wrap_bio(to_client, to_server, server_hostname=name)
    sides = (client, server.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(3):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return client.version() == "TLSv1.3"


def kept(centre: Path, name: str) -> Path:
    """The authority's certificate as a site has it."""
    copy = centre.parent / f"{name}.crt"
    copy.write_bytes((centre / "ca.crt").read_bytes())
    return copy


def all_files(centre: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in centre.iterdir() if path.is_file()}


def test_a_new_authority_is_trusted_by_sites_of_the_former_one_of_both_and_of_the_new_one(centre: Path) -> None:
    old = kept(centre, "old")
    assert connects(centre, trusting(old))
    enrol_server(centre, [], {}, new_authority=True)
    new = kept(centre, "new")
    assert new.read_bytes() != old.read_bytes()
    for trust in ([old], [new], [old, new], [new, old]):
        assert connects(centre, trusting(*trust))
    stranger = Home(centre.parent / "stranger", (HOST,))
    authority.renew(stranger)
    assert not connects(centre, trusting(stranger.at("ca.crt")))
    enrol_server(centre, [], {})  # a year later
    assert all(connects(centre, trusting(trust)) for trust in (old, new))


def test_once_the_overlap_is_ended_only_sites_with_the_new_one_connect(centre: Path) -> None:
    old = kept(centre, "old")
    enrol_server(centre, [], {}, new_authority=True)
    new = kept(centre, "new")
    enrol_server(centre, [], {}, now=True)
    assert kept(centre, "same").read_bytes() == new.read_bytes()
    assert not connects(centre, trusting(old))
    assert connects(centre, trusting(old, new))
    assert connects(centre, trusting(new))
    enrol_server(centre, [], {})
    assert not connects(centre, trusting(old))


def test_two_changes_lose_no_site(centre: Path) -> None:
    trusts = [kept(centre, "first")]
    for name in ("second", "third"):
        enrol_server(centre, [], {}, new_authority=True)
        trusts.append(kept(centre, name))
    assert all(connects(centre, trusting(trust)) for trust in trusts)


def test_a_stolen_key_signs_nothing_that_the_server_shows(centre: Path) -> None:
    old, before = kept(centre, "old"), all_files(centre)
    (centre / "ca.key").unlink()  # not needed: it may be lost, too
    enrol_server(centre, [], {}, new_authority=True, now=True)
    assert not connects(centre, trusting(old))
    assert connects(centre, trusting(kept(centre, "new")))
    assert (centre / "server.key").read_bytes() != before["server.key"], "whoever took the one took the other"
    shown = x509.load_pem_x509_certificates((centre / "server.crt").read_bytes())
    assert len(shown) == 1
    shown[0].verify_directly_issued_by(x509.load_pem_x509_certificate((centre / "ca.crt").read_bytes()))


def test_the_overlap_needs_the_former_key_and_says_so(centre: Path) -> None:
    (centre / "ca.key").rename(centre.parent / "safe.key")
    before = all_files(centre)
    with pytest.raises(FederationError, match=r"ca\.key is missing and cannot sign the change: restore it .*--now"):
        enrol_server(centre, [], {}, new_authority=True)
    assert all_files(centre) == before
    (centre.parent / "safe.key").rename(centre / "ca.key")
    enrol_server(centre, [], {}, new_authority=True)


def test_the_former_key_brought_back_after_the_change_is_refused(centre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = (centre / "ca.key").read_bytes()
    enrol_server(centre, [], {}, new_authority=True)
    shown = (centre / "server.crt").read_bytes()
    (centre / "ca.key").write_bytes(former)
    for more in ({}, {"now": True}, {"new_authority": True}):
        with pytest.raises(FederationError, match=r"ca\.key is not the key of .*ca\.crt"):
            enrol_server(centre, [], {}, **more)  # type: ignore[arg-type]
    assert (centre / "server.crt").read_bytes() == shown
    monkeypatch.setattr(certificates, "RENEW_DAYS", 400)
    assert "cannot be renewed: " in authority.renew_in_time(read_home(centre))  # a start is not refused for it


def test_a_key_without_its_authority_is_not_written_over(centre: Path) -> None:
    (centre / "ca.crt").unlink()
    key = (centre / "ca.key").read_bytes()
    with pytest.raises(UsageError, match=r"ca\.key exists without ca\.crt"):
        enrol_server(centre, [], {})
    assert (centre / "ca.key").read_bytes() == key


class Killed(BaseException):
    """What stops a process here: nothing may catch it."""


def moves(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Let a process live for so many renames and no more."""
    left = iter(range(many))

    def short(before: object) -> object:
        def moved(path: Path, target: Path) -> Path:
            if next(left, None) is None:
                raise Killed
            return before(path, target)  # type: ignore[no-any-return, operator]

        return moved

    monkeypatch.setattr(Path, "replace", short(Path.replace))
    monkeypatch.setattr(Path, "rename", short(Path.rename))


def killed_at(monkeypatch: pytest.MonkeyPatch, made: Home, many: int, now: bool) -> bool:
    with monkeypatch.context() as patch:
        moves(patch, many)
        try:
            authority.change(made, now)
        except Killed:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("now", [False, True])
def test_whoever_is_killed_halfway_leaves_what_the_next_command_ends(
    centre: Path, monkeypatch: pytest.MonkeyPatch, now: bool
) -> None:
    made, many = read_home(centre), 0
    old = kept(centre, "old")
    while killed_at(monkeypatch, made, many, now):
        many += 1
        if not now:
            for trust in (old, centre / "ca.crt"):
                assert connects(centre, trusting(trust)), f"{trust}, before the next command, after {many} renames"
        enrol_site(centre, f"site-{many}", centre.parent / f"kit-{many}")
        assert connects(centre, trusting(centre.parent / f"kit-{many}" / "ca.crt"))
        enrol_server(centre, [], {})
        assert connects(centre, trusting(kept(centre, "here")))
        if now:
            continue
        assert connects(centre, trusting(old)), f"after {many} renames"
    assert many > len(authority.ORDER)
    assert not [path.name for path in centre.iterdir() if "authority" in path.name and path.is_dir()]


def test_a_first_enrolment_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, done = 0, False
    while not done:
        folder = tmp_path / f"centre-{many}"
        with monkeypatch.context() as patch:
            moves(patch, many)
            try:
                enrol_server(folder, [HOST], {})
                done = True
            except Killed:
                many += 1
        enrol_server(folder, [HOST], {})
        assert connects(folder, trusting(folder / "ca.crt"))
    assert many > len(authority.ORDER)


def test_an_authority_that_ended_leaves_no_overlap(centre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 0)
    enrol_server(centre, [], {}, new_authority=True)
    monkeypatch.undo()
    home = read_home(centre)
    assert "ended 0 days ago, and no site can connect: multiseg fed enrol server" in authority.renew_in_time(home)
    enrol_server(centre, [], {}, new_authority=True)
    assert (centre / "bridge.crt").read_bytes() == b""
    assert authority.renew_in_time(home) == ""
    assert connects(centre, trusting(centre / "ca.crt"))


def test_a_bridge_ends_with_the_former_authority(centre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = certificates.ends(centre / "ca.crt")
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 5000)
    enrol_server(centre, [], {}, new_authority=True)
    bridge = (centre / "bridge.crt").read_bytes()
    assert certificates.last_end(bridge) == end
    assert f"connect until {end:%Y-%m-%d}" in authority.describe_authority(read_home(centre))
    assert certificates.still_valid(bridge) == bridge

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return end + timedelta(days=1)

    monkeypatch.setattr(certificates, "datetime", Later)
    assert certificates.still_valid(bridge) == b""


def test_an_authority_that_ends_soon_is_told(centre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 90)
    enrol_server(centre, [], {}, new_authority=True)
    assert "The authority ends in 90 days: multiseg fed enrol server" in authority.renew_in_time(read_home(centre))


def test_the_link_trusts_itself_and_no_change_touches_it(centre: Path) -> None:
    files = ("link.crt", "link.key")
    link = trusting(centre / "link.crt")
    assert connects(centre, link, files)
    assert not connects(centre, trusting(centre / "ca.crt"), files)
    before = {name: (centre / name).read_bytes() for name in files}
    enrol_server(centre, [], {}, new_authority=True)
    enrol_server(centre, [], {}, new_authority=True, now=True)
    authority.renew_link(read_home(centre))
    assert {name: (centre / name).read_bytes() for name in files} == before


def test_a_link_that_ends_or_that_the_authority_signed_is_made_anew(
    centre: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, files = read_home(centre), ("link.crt", "link.key")
    certificates.make_certificate(centre, ("ca.crt", "ca.key"), files, authority.LOOPBACK, 3650)  # as it once was
    assert not connects(centre, trusting(centre / "link.crt"), files)
    authority.renew_link(home)
    assert connects(centre, trusting(centre / "link.crt"), files)
    before = (centre / "link.crt").read_bytes()
    monkeypatch.setattr(certificates, "days_left", lambda path: 399.0)
    authority.renew_link(home)
    assert (centre / "link.crt").read_bytes() != before


def test_what_the_centre_is_told_is_what_openssl_says(centre: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*more: str) -> str:
        capsys.readouterr()
        assert run(["fed", "enrol", "server", str(centre), *more]) == 0
        return capsys.readouterr().out

    asked = ["openssl", "x509", "-in", str(centre / "ca.crt"), "-noout", "-fingerprint", "-sha256"]
    said = subprocess.run(asked, capture_output=True, encoding="utf-8", check=True).stdout
    fingerprint = said.strip().partition("=")[2]
    assert len(fingerprint) == 32 * 3 - 1
    first = told()
    assert f"SHA256 Fingerprint={fingerprint}\n" in first
    assert "former" not in first
    second = told("--new-authority")
    assert "Sites that trust the former one connect until" in second
    assert fingerprint not in second
    assert "former" not in told("--now")


def test_only_one_changes_the_authority_at_a_time(centre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, before, seen = read_home(centre), certificates.make_certificate, []

    def watched(*args: object, **more: object) -> None:
        with (centre / ".authority.lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(args)
        before(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(certificates, "make_certificate", watched)
    authority.change(made)
    authority.renew(made)
    authority.end_overlap(made)
    assert len(seen) == 3
