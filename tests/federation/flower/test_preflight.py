"""What a site looks at before it joins, against a server with a certificate of the federation's authority."""

import http.server
import json
import os
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from multiseg.federation.fab import app_hash
from multiseg.federation.flower import preflight as module
from multiseg.federation.flower.preflight import Check, hinders, preflight, preflight_apart
from multiseg.federation.gate.doorkeeper import Doorkeeper, GateRefusal
from multiseg.federation.identity.certificates import make_authority, make_certificate, make_site_key, write_secret
from multiseg.federation.identity.registry import admit
from multiseg.federation.identity.signing import DEACTIVATE, farewell, signed
from multiseg.federation.sites.audit_log import LOG, AuditEntry, record
from multiseg.federation.sites.site_settings import SiteSettings

REACHED = ("server", "certificate", "clock")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder / "ca.crt", folder / "ca.key")
    make_certificate(folder, ("ca.crt", "ca.key"), ("server.crt", "server.key"), ["127.0.0.1"])
    secret, public = make_site_key()
    write_secret(folder / "site.key", secret)
    admit(folder, "alder", public)
    return folder


@pytest.fixture
def settings(folder: Path, site_stores: dict[str, str], tmp_path: Path) -> SiteSettings:
    return SiteSettings(
        "alder",
        "127.0.0.1:9",
        site_stores["alder"],
        ca=folder / "ca.crt",
        key=folder / "site.key",
        state=tmp_path / "state",
        device="cpu",
        approved=(app_hash(),),
        min_free_gib=0.0,
    )


@contextmanager
def gate(folder: Path, status: int = 404, body: bytes = b"", late_s: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """Address of a server that lets pass whom the gate's doorkeeper knows, and what it was asked."""
    keeper, asked = Doorkeeper(folder), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path.encode() + self.rfile.read(int(self.headers.get("Content-Length", 0))))
            headers = {name.lower().encode(): value.encode() for name, value in self.headers.items()}
            try:
                keeper.identify(headers, "", activates=False)
                code, text = status, body
            except GateRefusal as refusal:
                code, text = refusal.status, json.dumps(refusal.body).encode()
            self.send_response_only(code)
            told = datetime.now(UTC) + timedelta(seconds=late_s)
            self.send_header("date", told.strftime("%a, %d %b %Y %H:%M:%S GMT"))
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *said: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def looked(settings: SiteSettings, what: str) -> Check:
    return next(check for check in preflight(settings) if check.what == what)


def test_all_is_well(settings: SiteSettings, folder: Path) -> None:
    with gate(folder) as (address, _):
        checks = preflight_apart(replace(settings, server=address))
    bad = [check for check in checks if check.level != "ok" and check.what != "account"]
    assert not bad
    assert {check.what for check in checks} >= {"key", "authority", "store", "disk", "device", "app", *REACHED}


def test_a_key_that_others_can_read(settings: SiteSettings, tmp_path: Path) -> None:
    key = tmp_path / "site.key"
    key.write_bytes(settings.key.read_bytes())
    key.chmod(0o640)
    check = looked(replace(settings, key=key), "key")
    assert (check.level, f"chmod 600 {key}" in check.said, "640" in check.said) == ("error", True, True)


@pytest.mark.parametrize("kind", ["ed25519", "rubbish", "missing"])
def test_a_key_that_flower_cannot_use(settings: SiteSettings, tmp_path: Path, kind: str) -> None:
    key = tmp_path / "site.key"
    data = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    if kind != "missing":
        write_secret(key, data if kind == "ed25519" else b"rubbish")
    checks = {check.what: check for check in preflight(replace(settings, key=key))}
    assert checks["key"].level == "error"
    assert str(key) in checks["key"].said
    assert checks["server"].level == "warning"


def test_an_app_that_is_not_approved(settings: SiteSettings) -> None:
    check = looked(replace(settings, approved=("0" * 64,)), "app")
    assert check.level == "error"
    assert app_hash() in check.said


@pytest.mark.parametrize(
    ("change", "what", "told"),
    [
        ({"min_free_gib": 1e9}, "disk", "min_free_gib = 1e"),
        ({"store": "nowhere.zarr"}, "store", "nowhere.zarr"),
        ({"databases": ("elm",)}, "store", "elm"),
        ({"hide": ("alder/tisue",)}, "store", "alder/tisue"),
        ({"device": "cuda:77"}, "device", "cuda"),
    ],
)
def test_what_cannot_be_used(settings: SiteSettings, change: dict[str, object], what: str, told: str) -> None:
    check = looked(replace(settings, **change), what)  # type: ignore[arg-type]
    assert check.level == "error"
    assert told in check.said


def test_a_state_that_others_can_read(settings: SiteSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert looked(settings, "state").level == "ok"  # it was made so
    settings.state.chmod(0o750)
    check = looked(settings, "state")
    assert (check.level, f"chmod -R go= {settings.state}" in check.said) == ("warning", True)


def test_free_space_is_told_in_gib(settings: SiteSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * 2**30))
    enough = replace(settings, min_free_gib=5.0)
    assert looked(enough, "disk") == Check("disk", "ok", "5 GiB free")
    scarce = looked(replace(settings, min_free_gib=5.5), "disk")
    assert scarce.level == "error"
    assert "5.0 GiB are free" in scarce.said


def test_root_makes_no_state_that_the_sites_account_could_not_use(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check = looked(settings, "state")
    assert (check.level, "joining creates it" in check.said) == ("ok", True)
    assert not settings.state.exists()


@pytest.mark.slow
def test_an_audit_log_that_was_changed(settings: SiteSettings) -> None:
    assert "no message came or left" in looked(settings, "audit").said
    log = settings.state / LOG
    for number in (1, 2):
        record(log, AuditEntry("in", "round", "trial", number, 10, "ab" * 32))
    assert looked(settings, "audit").level == "ok"
    log.write_text(log.read_text().replace('"num_bytes": 10', '"num_bytes": 11', 1))
    check = looked(settings, "audit")
    assert (check.level, hinders(check)) == ("warning", False)
    assert "line 2 does not follow" in check.said


def test_a_state_that_cannot_be_written(settings: SiteSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert looked(replace(settings, state=tmp_path / "file"), "state").level == "error"


def test_a_server_that_is_away_does_not_hinder(settings: SiteSettings) -> None:
    check = looked(settings, module.LINE)
    assert "nothing listens at 127.0.0.1, port 9" in check.said
    assert check.level == "error"
    assert not hinders(check)


def test_a_server_of_another_authority_hinders(settings: SiteSettings, folder: Path, tmp_path: Path) -> None:
    make_authority(tmp_path / "ca.crt", tmp_path / "ca.key")
    with gate(folder) as (address, _):
        check = looked(replace(settings, server=address, ca=tmp_path / "ca.crt"), "server")
    assert hinders(check)
    assert f"the server is not the one of {tmp_path / 'ca.crt'}" in check.said


def test_a_name_that_the_certificate_does_not_hold(settings: SiteSettings, folder: Path) -> None:
    with gate(folder) as (address, _):
        check = looked(replace(settings, server=address.replace("127.0.0.1", "localhost")), "server")
    assert hinders(check)
    assert "not for localhost" in check.said


def test_a_key_that_the_server_does_not_know(settings: SiteSettings, folder: Path, tmp_path: Path) -> None:
    write_secret(tmp_path / "other.key", make_site_key()[0])
    with gate(folder) as (address, _):
        check = looked(replace(settings, server=address, key=tmp_path / "other.key"), "server")
    assert check.level == "error"
    assert "does not know this site's key" in check.said


def test_another_401_is_no_refusal_of_the_key(settings: SiteSettings, folder: Path) -> None:
    with gate(folder, status=401, body=b'{"detail": "Invalid SuperNode authentication"}') as (address, _):
        assert looked(replace(settings, server=address), "server").level == "ok"


@pytest.mark.parametrize(
    ("late_s", "level"), [(0.0, "ok"), (20.0, "warning"), (400.0, "error"), (-20.0, "error"), (200.0, "warning")]
)
def test_clocks(settings: SiteSettings, folder: Path, late_s: float, level: str) -> None:
    with gate(folder, late_s=late_s) as (address, _):
        check = looked(replace(settings, server=address), "clock")
    assert check.level == level
    assert level == "ok" or ("behind" if late_s > 0 else "ahead") in check.said


@pytest.mark.parametrize(
    ("begins", "ends", "level", "told"),
    [
        (-10, 300, "ok", "until"),
        (-10, 12, "warning", "in 12 days"),
        (-10, -1, "error", "expired"),
        (1, 9, "error", "clock"),
    ],
)
def test_dates_of_certificates(begins: int, ends: int, level: str, told: str) -> None:
    now = datetime.now(UTC)
    found = module._validity(now + timedelta(days=begins), now + timedelta(days=ends, hours=1), "it")
    assert found[0] == level
    assert told in found[1]


@pytest.mark.parametrize("number", [1, 127, 128, 3281780698458618003, 2**64 - 1])
def test_a_farewell_is_what_flower_expects(settings: SiteSettings, folder: Path, number: int) -> None:
    with gate(folder, status=200) as (address, asked):
        assert farewell(replace(settings, server=address), number)
    assert asked == [DEACTIVATE.encode() + DeactivateNodeRequest(node_id=number).SerializeToString()]


def test_nobody_hears_a_farewell(settings: SiteSettings) -> None:
    assert not farewell(settings, 7)


def test_headers_are_those_of_flowers_node(settings: SiteSettings) -> None:
    names = {FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER}
    assert {name.lower() for name in names} < set(signed(settings.key))
