"""A server and its sites made known to each other."""

import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import tarfile
import tomllib
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from multiseg.errors import FederationError, UsageError
from multiseg.federation.fab import app_bytes, app_hash
from multiseg.federation.identity import certificates
from multiseg.federation.identity.authority import renew_in_time
from multiseg.federation.identity.enrol import enrol_server, enrol_site, revoke_site, sites
from multiseg.federation.identity.home import read_home
from multiseg.federation.identity.registry import read_registry
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site_settings import read_site

HOSTS = ["fed.example.org", "10.0.0.5"]
SECRETS = ("ca.key", "server.key", "link.key", "superexec.secret")


@pytest.fixture
def centre(tmp_path: Path) -> Path:
    enrol_server(tmp_path / "centre", HOSTS, {"port": 9443})
    return tmp_path / "centre"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def public_file(folder: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    path = folder / "own.pub"
    path.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return path


def test_the_servers_certificate_is_for_all_its_names_and_signed_by_the_authority(centre: Path) -> None:
    authority, served = certificate(centre / "ca.crt"), certificate(centre / "server.crt")
    served.verify_directly_issued_by(authority)
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["10.0.0.5", "127.0.0.1", "::1"]
    assert timedelta(days=364) < served.not_valid_after_utc - datetime.now(UTC) < timedelta(days=366)
    assert authority.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3640)


def test_a_strict_client_takes_the_certificate(centre: Path) -> None:
    context = ssl.create_default_context(cafile=str(centre / "ca.crt"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(centre / "server.crt", centre / "server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = context.wrap_bio(to_client, to_server, server_hostname="fed.example.org")
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client_side, server_side):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client_side.version() == "TLSv1.3"


def test_secrets_are_for_their_owner_alone(centre: Path) -> None:
    assert {mode(centre / name) for name in SECRETS} == {0o600}
    assert mode(centre) == 0o700


def test_enrolling_a_server_again_renews_the_certificate_and_keeps_the_rest(centre: Path, tmp_path: Path) -> None:
    enrol_site(centre, "alder", tmp_path / "kit")
    kept = {name: (centre / name).read_bytes() for name in (*SECRETS, "ca.crt", "link.crt", "sites.json", "home.toml")}
    serial = certificate(centre / "server.crt").serial_number
    enrol_server(centre, [], {})
    assert {name: (centre / name).read_bytes() for name in kept} == kept
    assert certificate(centre / "server.crt").serial_number != serial
    enrol_server(centre, ["new.example.org"], {"port": 443})
    home = read_home(centre)
    assert (home.hosts, home.port, home.superlink_port) == (("new.example.org",), 443, 8000)


def test_a_server_needs_a_host_and_three_ports(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no host"):
        enrol_server(tmp_path / "new", [], {})
    with pytest.raises(UsageError, match=r"ports \(8000, 8000, 9400\)"):
        enrol_server(tmp_path / "new", HOSTS, {"port": 8000})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("host", "port", "dialled"),
    [
        ("Fed.Example.org", 9443, "fed.example.org"),
        ("10.0.0.5", 1, "10.0.0.5"),
        ("2001:DB8::1", 65535, "2001:db8::1"),
        ("[2001:db8::1]", 443, "2001:db8::1"),
        ("a" * 63 + "." + "b" * 63 + ".example", 443, "a" * 63 + "." + "b" * 63 + ".example"),
    ],
)
def test_every_kit_can_be_dialled_and_the_certificate_is_for_what_is_dialled(
    tmp_path: Path, host: str, port: int, dialled: str
) -> None:
    enrol_server(tmp_path / "centre", [host, host], {"port": port})
    kit, _ = enrol_site(tmp_path / "centre", "alder", tmp_path / "kit")
    settings = kit / "site.toml"
    settings.write_text(settings.read_text().replace('store = ""', 'store = "/data/alder.zarr"'))
    assert read_site(settings).address() == (dialled, port)
    assert read_home(tmp_path / "centre").hosts == (dialled,)
    names = certificate(tmp_path / "centre" / "server.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    held = [*names.value.get_values_for_type(x509.DNSName), *map(str, names.value.get_values_for_type(x509.IPAddress))]
    assert dialled in held


@pytest.mark.parametrize(
    "host", ["", "fed.example.org:8443", "https://fed.example.org", "fed_1.example.org", "0.0.0.0"]
)
def test_a_host_that_cannot_be_dialled_makes_no_server(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match=r'Give a name or an address alone, as "fed\.example\.org"'):
        enrol_server(tmp_path / "new", ["fed.example.org", host], {})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["", ".", "..", "/", "x/..", "file/kit", "file"])
def test_a_kit_needs_a_new_folder(centre: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(centre.parent)
    Path("file").touch()
    with pytest.raises(UsageError, match=r"new folder|is a file|exists already"):
        enrol_site(centre, "alder", Path(place))
    assert sites(centre) == []
    assert sorted(path.name for path in centre.parent.iterdir()) == ["centre", "file"]


def test_files_that_cannot_be_read_are_told(centre: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"could not be read: Is a directory.*ends in \.pub"):
        enrol_site(centre, "alder", tmp_path / "kit", public_key=tmp_path)
    with pytest.raises(UsageError, match=r"could not be read: No such file"):
        enrol_site(centre, "alder", tmp_path / "kit", public_key=tmp_path / "none.pub")
    (centre / "home.toml").unlink()
    (centre / "home.toml").mkdir()
    with pytest.raises(UsageError, match=r"home\.toml could not be read: Is a directory"):
        read_home(centre)


def test_a_home_whose_host_was_edited_wrongly_says_where(centre: Path) -> None:
    settings = centre / "home.toml"
    settings.write_text(settings.read_text().replace('"fed.example.org"', '"fed.example.org:8443"'))
    with pytest.raises(UsageError, match=r"home\.toml: host 'fed\.example\.org:8443' holds a port.*Correct it there"):
        enrol_site(centre, "alder", centre.parent / "kit")
    assert not (centre.parent / "kit").exists()
    settings.write_text(settings.read_text().replace('"fed.example.org:8443"', '"fed.example.org"'))
    settings.write_text(settings.read_text().replace('listen = "0.0.0.0"', 'listen = ""'))
    with pytest.raises(UsageError, match="listen is ''"):
        read_home(centre)


def test_a_certificate_is_renewed_before_it_ends(centre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, before = read_home(centre), (centre / "server.crt").read_bytes()
    assert renew_in_time(home) == ""
    monkeypatch.setattr(certificates, "days_left", lambda path: 12.0)
    assert "would have ended in 12 days and is renewed" in renew_in_time(home)
    assert (centre / "server.crt").read_bytes() != before
    (centre / "ca.key").unlink()
    assert "ends in 12 days: restore" in renew_in_time(home)
    monkeypatch.setattr(certificates, "days_left", lambda path: -3.0)
    with pytest.raises(FederationError, match="ended 3 days ago"):
        renew_in_time(home)


def test_a_kit_holds_what_a_site_needs(centre: Path, tmp_path: Path) -> None:
    kit, archive = enrol_site(centre, "alder", tmp_path / "deep" / "alder-kit")
    assert sorted(path.name for path in kit.iterdir()) == ["README.txt", "ca.crt", "site.key", "site.toml"]
    assert (kit / "ca.crt").read_bytes() == (centre / "ca.crt").read_bytes()
    assert mode(kit / "site.key") == 0o600
    assert mode(archive) == 0o600
    key = load_ssh_private_key((kit / "site.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert read_registry(centre)["alder"].public_key == public
    with tarfile.open(archive) as packed:
        members = {member.name: member.mode for member in packed}
        inside = packed.extractfile("alder-kit/site.key")
        assert inside is not None
        assert inside.read() == (kit / "site.key").read_bytes()
    assert members["alder-kit/site.key"] == 0o600
    assert "fed.example.org:9443" in (kit / "README.txt").read_text()
    assert not list(tmp_path.glob("**/.kit*"))


def test_a_kits_settings_are_read_once_the_store_is_filled_in(centre: Path, tmp_path: Path) -> None:
    kit, _ = enrol_site(centre, "alder", tmp_path / "kit")
    settings = kit / "site.toml"
    with pytest.raises(UsageError, match="store is empty"):
        read_site(settings)
    settings.write_text(settings.read_text().replace('store = ""', 'store = "/data/alder.zarr"'))
    said = read_site(settings)
    assert (said.site, said.server, said.approved) == ("alder", "fed.example.org:9443", (app_hash(),))
    assert (said.key, said.ca) == (kit / "site.key", kit / "ca.crt")


def test_a_kit_names_every_setting_of_what_leaves_with_its_default(centre: Path, tmp_path: Path) -> None:
    kit, _ = enrol_site(centre, "alder", tmp_path / "kit")
    settings = kit / "site.toml"
    names = "|".join(field.name for field in fields(Leaves))
    said = settings.read_text().replace('store = ""', 'store = "/data/alder.zarr"')
    said, many = re.subn(rf"^# (\[leaves\]$|(?:{names}) = )", r"\1", said, flags=re.MULTILINE)
    assert many == 1 + len(fields(Leaves))
    settings.write_text(said)
    assert read_site(settings).leaves == Leaves()
    assert set(tomllib.loads(said)["leaves"]) == {field.name for field in fields(Leaves)}


def test_a_kit_tells_what_it_holds(centre: Path, tmp_path: Path) -> None:
    own = public_file(tmp_path, ec.generate_private_key(ec.SECP384R1()))
    with_key, _ = enrol_site(centre, "alder", tmp_path / "with")
    without, _ = enrol_site(centre, "birch", tmp_path / "without", own)
    assert sorted(path.name for path in without.iterdir()) == ["README.txt", "ca.crt", "site.toml"]
    for kit in (with_key, without):
        told = (kit / "README.txt").read_text()
        listed = set(re.findall(r"^(\S+\.\S+)  ", told, re.MULTILINE))
        assert listed == {path.name for path in kit.iterdir()} - {"README.txt"}
        assert "`approved`" in told
        assert "multiseg fed app --hash" in told
    assert "Your key is not in the kit" in (without / "README.txt").read_text()


def test_a_site_may_keep_its_key_to_itself(centre: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    kit, archive = enrol_site(centre, "alder", tmp_path / "kit", public_file(tmp_path, key))
    assert not (kit / "site.key").exists()
    with tarfile.open(archive) as packed:
        assert not [name for name in packed.getnames() if name.endswith(".key")]
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert read_registry(centre)["alder"].public_key == public


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_key_that_ssh_keygen_made_is_taken(centre: Path, tmp_path: Path) -> None:
    made = tmp_path / "own"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(made)], check=True)
    enrol_site(centre, "alder", tmp_path / "kit", made.with_suffix(".pub"))
    assert sites(centre) == ["alder"]


def test_a_key_of_another_kind_is_refused(centre: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an elliptic curve key"):
        enrol_site(centre, "alder", tmp_path / "kit", public_file(tmp_path, ed25519.Ed25519PrivateKey.generate()))
    (tmp_path / "own.pub").write_text("rubbish")
    with pytest.raises(UsageError, match=r"own\.pub is not a public key of OpenSSH"):
        enrol_site(centre, "alder", tmp_path / "kit", tmp_path / "own.pub")
    assert sites(centre) == []
    assert not (tmp_path / "kit").exists()


def test_no_kit_and_no_name_is_written_over(centre: Path, tmp_path: Path) -> None:
    kit, _ = enrol_site(centre, "alder", tmp_path / "kit")
    key = (kit / "site.key").read_bytes()
    with pytest.raises(UsageError, match="kit exists already"):
        enrol_site(centre, "birch", kit)
    with pytest.raises(UsageError, match=r"alder has been enrolled since .*multiseg fed revoke"):
        enrol_site(centre, "alder", tmp_path / "second")
    assert (kit / "site.key").read_bytes() == key
    assert not (tmp_path / "second").exists()
    assert sites(centre) == ["alder"]


def test_a_revoked_site_comes_back_only_with_a_new_key(centre: Path, tmp_path: Path) -> None:
    own = public_file(tmp_path, ec.generate_private_key(ec.SECP384R1()))
    enrol_site(centre, "alder", tmp_path / "first", own)
    revoke_site(centre, "alder")
    assert sites(centre) == []
    with pytest.raises(UsageError, match="is or was that of alder"):
        enrol_site(centre, "alder", tmp_path / "second", own)
    before = read_registry(centre)["alder"].public_key
    enrol_site(centre, "alder", tmp_path / "third")
    entry = read_registry(centre)["alder"]
    assert (entry.revoked, entry.former) == ("", (before,))
    assert sites(centre) == ["alder"]


def test_who_is_not_enrolled_cannot_be_revoked(centre: Path, tmp_path: Path) -> None:
    enrol_site(centre, "alder", tmp_path / "kit")
    with pytest.raises(UsageError, match="'birch' is not an enrolled site; enrolled: alder"):
        revoke_site(centre, "birch")


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65])
def test_a_site_needs_a_name(centre: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name"):
        enrol_site(centre, name, tmp_path / "kit")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("port = 0", "give three different ones"),
        ('port = "x"', "port = 'x'"),
        ("prot = 1", "prot"),
        ("=", "not valid TOML"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(centre: Path, line: str, told: str) -> None:
    (centre / "home.toml").write_text(f'hosts = ["a"]\n{line}\n')
    with pytest.raises(UsageError, match=told):
        read_home(centre)


def test_another_folder_is_no_servers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fed enrol server"):
        enrol_site(tmp_path, "alder", tmp_path / "kit")


def test_the_registry_is_readable(centre: Path, tmp_path: Path) -> None:
    enrol_site(centre, "alder", tmp_path / "kit")
    said = json.loads((centre / "sites.json").read_text())
    assert set(said["alder"]) == {"public_key", "enrolled", "revoked", "former"}
    assert "PRIVATE" not in (centre / "sites.json").read_text()


def test_the_app_is_the_same_each_time_and_holds_no_code(tmp_path: Path) -> None:
    import io
    import zipfile

    from flwr.common.config import get_fab_config

    assert app_bytes() == app_bytes()
    with zipfile.ZipFile(io.BytesIO(app_bytes())) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
    assert get_fab_config(app_bytes())["project"]["dependencies"] == []


def test_root_writes_nothing_that_the_servers_account_could_not_read(
    centre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (centre / ".authority.lock").unlink()  # as of an earlier version
    before = sorted(path.name for path in centre.iterdir())
    owner = centre.stat().st_uid or 4242
    os.chown(centre, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for attempt in (lambda: enrol_site(centre, "elm", tmp_path / "elm"), lambda: enrol_server(centre, [], {})):
        with pytest.raises(UsageError, match=r"belongs to the account .*, which could not read what root writes"):
            attempt()
    assert sorted(path.name for path in centre.iterdir()) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    os.chown(empty, owner, -1)
    with pytest.raises(UsageError, match="belongs to the account"):
        enrol_server(empty, HOSTS, {})
    assert not list(empty.iterdir())
