"""The coordinating centre in real processes, with TLS and keys, on loopback."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest
from commands import Command
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from deployed import IMPORTED
from made_centre import NEEDED, every_path, make_centre, make_site, signed
from servers import free_port

from multiseg.errors import FederationError, ResourceError, UsageError
from multiseg.federation.flower.client_app import REASON
from multiseg.federation.flower.control import controlling
from multiseg.federation.flower.serve import check_files, check_ports, check_room, pack, serve
from multiseg.federation.flower.submit import active_with, show, status, stop, submit
from multiseg.federation.identity.enrol import enrol_server, revoke_site
from multiseg.federation.identity.home import read_home
from multiseg.federation.supervise import command_path

PATIENCE = 60.0
RUN = """
experiment = "lesions"
sites = ["alder"]
[schedule]
rounds = 1
"""


class Served:
    """A folder that is being served, and the sites that are enrolled there."""

    def __init__(self, folder: Path) -> None:
        self.centre = make_centre(folder)
        self.home = read_home(self.centre)
        self.keys = {name: make_site(self.centre, name) for name in ("alder", "birch")}
        self.said = folder / "said.txt"
        self.processes: list[Command] = []
        self.environment = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": str(folder / "flower"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, arguments: list[str], out: Path, script: str = "") -> Command:
        """One of multiseg's commands, or a script of Flower's."""
        out.touch()
        path = Path(command_path(script)) if script else None
        process = Command(arguments, out, self.environment, path, forks=IMPORTED)
        self.processes.append(process)
        return process

    def node(self, site: str, key: Path, out: Path, executor: bool = False) -> Command:
        """A Flower node without anything of ours, with Flower's executor or without one."""
        address = f"127.0.0.1:{free_port()}"
        (secret := out.with_suffix(".secret")).write_bytes(b"s" * 96)
        shared = ["--superexec-auth-secret-file", str(secret)]
        if executor:
            self.start(["--insecure", "--runtime-api-address", address, *shared], out, "flower-superexec")
        return self.start(
            [
                *("--superlink", self.home.public, "--host", "127.0.0.1", "--port", address.rpartition(":")[2]),
                *("--root-certificates", str(self.centre / "ca.crt"), "--auth-supernode-private-key", str(key)),
                *("--node-config", f'site="{site}"', "--isolation", "process", *shared),
            ],
            out,
            "flower-supernode",
        )

    def waits(self, met: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not met():
            assert time.monotonic() < until, f"waited in vain for {what}: {self.said.read_text()}"
            time.sleep(0.1)

    def client(self) -> httpx.Client:
        """Whoever has the federation's certificate, and no more."""
        trust = ssl.create_default_context(cafile=str(self.centre / "ca.crt"))
        return httpx.Client(base_url=f"https://{self.home.public}", verify=trust, trust_env=False, timeout=30)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(40)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with alder's node, which runs Flower's own executor, online."""
    folder = tmp_path_factory.mktemp("served")
    it = Served(folder)
    try:
        it.start(["fed", "serve", str(it.centre)], it.said)
        it.waits(lambda: "Ready. 2 sites are enrolled." in it.said.read_text(), "the server")
        it.node("alder", folder / "alder-kit" / "site.key", folder / "alder.txt", executor=True)
        it.waits(lambda: "alder is online: 1 of 2" in it.said.read_text(), "alder")
        yield it
    finally:
        it.end()


@pytest.mark.slow
def test_a_run_reaches_a_site_and_comes_back(served: Served, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    number, warnings = submit(served.centre, tmp_path / "run.toml")
    assert warnings == []
    with pytest.raises(UsageError, match=f"as run {number}: stop it first"):
        submit(served.centre, tmp_path / "run.toml")
    pieces: list[str] = []
    assert show(served.centre, str(number), True, pieces.append).outcome == "failed"
    assert f"alder FAILED: {REASON}" in "".join(pieces)  # the word of the site itself
    assert (served.centre / "runs" / "lesions").is_dir()
    found = status(served.centre)
    assert [(site["site"], site["status"]) for site in found["sites"]] == [("alder", "online"), ("birch", "registered")]
    assert (found["runs"][0]["run"], found["runs"][0]["status"]) == (str(number), "failed")
    with pytest.raises(UsageError, match="has ended: failed"):
        stop(served.centre, "lesions")


@pytest.mark.slow
def test_a_run_that_is_stopped_is_not_taken_up_again(served: Served, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN.replace('"alder"', '"birch"').replace("lesions", "waits"))
    number, warnings = submit(served.centre, tmp_path / "run.toml")
    assert warnings == ["Waiting for sites that are offline: birch."]
    served.waits(lambda: status(served.centre)["runs"][0]["waits_for"] == "birch (away)", "what it waits for")
    assert active_with(served.centre, "birch") == ["waits"]
    assert active_with(served.centre, "alder") == []
    assert stop(served.centre, "waits") == number
    with controlling(served.home) as control:
        served.waits(lambda: control.runs()[0].outcome == "stopped", "the end of the run")
        assert status(served.centre)["runs"][0]["waits_for"] == ""
        assert active_with(served.centre, "birch") == []
        time.sleep(6)  # longer than the steward's round
        assert control.runs()[0].run_id == number


@pytest.mark.slow
def test_no_stranger_gets_anything_from_the_public_port(served: Served) -> None:
    with served.client() as client:
        for method, path in sorted(every_path(), key=str):
            found = client.request(method, path, headers={"content-type": "application/protobuf"})
            needed = path.removeprefix("/v1/fleet/") in NEEDED and method == "POST"
            assert found.status_code == (404 if not needed else 400 if "activate-node" in path[10:24] else 401), path


@pytest.mark.slow
def test_an_enrolled_site_gets_nothing_but_a_sites_calls(served: Served) -> None:
    with served.client() as client:
        for method, path in sorted(every_path(), key=str):
            if method == "POST" and path.removeprefix("/v1/fleet/") in NEEDED:
                continue
            assert client.request(method, path, headers=signed(served.keys["alder"])).status_code == 404, path
        mine = client.post("/v1/fleet/get-run", headers=signed(served.keys["alder"]))
        assert mine.status_code == 401  # the SuperLink's own word: the body names no node
        assert mine.json() == {"detail": "Invalid SuperNode authentication"}


@pytest.mark.slow
def test_a_key_that_is_not_enrolled_does_not_join(served: Served, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    node = served.node("alder", tmp_path / "key", tmp_path / "node.txt")
    served.waits(lambda: "[code: 2901] This site's key is not enrolled" in (tmp_path / "node.txt").read_text(), "2901")
    assert node.wait(PATIENCE) != 0


@pytest.mark.slow
def test_a_client_that_speaks_no_tls_or_knows_no_authority_gets_nothing(served: Served) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{served.home.public}/", trust_env=False)
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"https://{served.home.public}/", trust_env=False)


@pytest.mark.slow
def test_the_superlink_is_on_loopback_alone(served: Served) -> None:
    found = Path("/proc/net/tcp").read_text().splitlines()[1:]
    port = f"{served.home.superlink_port:04X}"
    listening = [line.split()[1] for line in found if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"]
    assert listening == [f"0100007F:{port}"]


@pytest.mark.slow
def test_a_site_is_let_in_and_shut_out_while_the_server_runs(served: Served) -> None:
    key = make_site(served.centre, "cedar")
    served.waits(lambda: "cedar registered." in served.said.read_text(), "cedar")

    def answer() -> int:
        with served.client() as client:
            return client.post("/v1/fleet/activate-node", headers=signed(key)).status_code

    served.waits(lambda: answer() == 401, "the gate to know cedar")  # by the SuperLink: the body holds no key
    revoke_site(served.centre, "cedar")
    served.waits(lambda: answer() == 400, "the gate to refuse cedar")
    served.waits(lambda: "cedar removed." in served.said.read_text(), "cedar's end")
    assert {site["site"]: site["status"] for site in status(served.centre)["sites"]}["cedar"] == "revoked"


@pytest.mark.slow
def test_a_renewed_certificate_is_shown_without_a_restart(served: Served) -> None:
    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", served.home.port))

    before = shown()
    enrol_server(served.centre, [], {})
    served.waits(lambda: shown() != before, "the new certificate")
    assert shown() == (served.centre / "server.crt").read_text()


@pytest.mark.slow
def test_the_authority_changes_while_sites_are_connected(served: Served, tmp_path: Path) -> None:
    old, new = tmp_path / "old.crt", served.centre / "ca.crt"
    old.write_bytes(new.read_bytes())

    def comes_through(trusted: str) -> bool:
        trust = ssl.create_default_context(cadata=trusted)
        try:
            with socket.create_connection(("127.0.0.1", served.home.port), 30) as line:
                trust.wrap_socket(line, server_hostname="127.0.0.1").close()
        except ssl.SSLCertVerificationError:
            return False
        return True

    def comes_with(file: Path) -> bool:
        return comes_through(file.read_text())

    enrol_server(served.centre, [], {}, new_authority=True)
    assert new.read_bytes() != old.read_bytes()
    served.waits(lambda: comes_with(new), "the new authority")
    assert comes_with(old)
    assert comes_through(old.read_text() + new.read_text())
    served.node("birch", served.centre.parent / "birch-kit" / "site.key", served.centre.parent / "birch.txt")
    served.waits(lambda: "birch is online: 2 of" in served.said.read_text(), "birch, which has the new one")
    states = {site["site"]: site["status"] for site in status(served.centre)["sites"]}
    assert (states["alder"], states["birch"]) == ("online", "online")  # alder's node knows the former alone

    enrol_server(served.centre, [], {}, now=True)
    served.waits(lambda: not comes_with(old), "the end of the former authority")
    assert comes_with(new)
    assert comes_through(old.read_text() + new.read_text())
    assert status(served.centre)["error"] == "", "what runs behind the gate has not noticed"


@pytest.mark.slow
def test_numbers_are_told_on_loopback(served: Served) -> None:
    told = httpx.get(f"http://127.0.0.1:{served.home.metrics_port}/metrics", trust_env=False).text
    assert 'multiseg_up{part="superlink"} 1' in told
    assert 'multiseg_up{part="gate"} 1' in told
    assert 'multiseg_site_online{site="alder"} 1' in told
    assert json.loads((served.centre / "gate.json").read_text())["sites"]["alder"]["down"] > 0


@pytest.mark.slow
def test_a_second_server_of_the_folder_is_refused(served: Served) -> None:
    with pytest.raises(ResourceError, match=f"is in use by process {served.processes[0].pid}"):
        serve(served.centre, lambda line: None)


@pytest.mark.slow
def test_a_gate_that_is_killed_comes_back(served: Served) -> None:
    command = f"multiseg.federation.gate.gate\0{served.centre}".encode()

    def gates() -> list[int]:
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if command in _content(path)]

    (pid,) = gates()
    os.kill(pid, signal.SIGKILL)
    served.waits(lambda: "gate ended with code -9" in served.said.read_text(), "its end")

    def answers() -> bool:
        try:
            with served.client() as client:
                return client.get("/").status_code == 404
        except httpx.HTTPError:
            return False

    served.waits(answers, "the gate")
    (new,) = gates()
    assert new != pid
    assert served.processes[0].poll() is None, "the server itself went on"


@pytest.mark.slow
def test_the_server_ends_whole(served: Served) -> None:
    """The last of this file: it ends the server."""
    served.end()
    assert served.processes[0].returncode == 0
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(served.centre).encode() in _content(path)]
    assert left == []
    assert served.said.read_text().rstrip().endswith("is resumed when the server starts again.")
    with pytest.raises(FederationError, match=r"does not answer .*multiseg fed serve"), controlling(served.home) as it:
        it.nodes()
    assert "does not answer" in status(served.centre)["error"]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    home = read_home(make_centre(tmp_path))
    check_ports(home)
    with socket.socket() as other:
        other.bind(("127.0.0.1", home.superlink_port))
        other.listen()
        with pytest.raises(ResourceError, match=rf"127\.0\.0\.1:{home.superlink_port} .*another superlink_port"):
            check_ports(home)


def test_a_full_disk_is_told_before_the_start(tmp_path: Path) -> None:
    folder = make_centre(tmp_path)
    settings = folder / "home.toml"
    settings.write_text(settings.read_text().replace("min_free_gib = 0.1", "min_free_gib = 9999999"))
    with pytest.raises(ResourceError, match=r"GiB are free .* asks for 9999999"):
        check_room(read_home(folder))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = make_centre(tmp_path)
    (folder / "superexec.secret").unlink()
    with pytest.raises(UsageError, match=r"lacks superexec\.secret: run multiseg fed enrol server"):
        check_files(read_home(folder))


def test_a_run_of_sites_that_are_not_enrolled_is_not_sent(tmp_path: Path) -> None:
    folder = make_centre(tmp_path)
    make_site(folder, "alder")
    (tmp_path / "run.toml").write_text(RUN.replace('"alder"', '"alder", "elm"'))
    with pytest.raises(UsageError, match=r"elm in .* are not enrolled"):
        submit(folder, tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text(RUN.replace("rounds = 1", "rounds = 0"))
    with pytest.raises(UsageError, match="0 rounds"):
        submit(folder, tmp_path / "run.toml")


class Calls:
    """The control calls of a SuperLink on which nothing runs yet."""

    def __init__(self) -> None:
        self.started: list[dict[str, object]] = []

    def runs(self) -> list[object]:
        return []

    nodes = runs

    def start(self, settings: dict[str, object]) -> int:
        self.started.append(settings)
        return 7


def test_a_run_that_names_a_revoked_site_is_sent_whole_and_conducted_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = make_centre(tmp_path), Calls()
    for name in ("alder", "birch", "cedar"):
        make_site(folder, name)
    monkeypatch.setattr("multiseg.federation.flower.submit.controlling", lambda server: nullcontext(calls))
    file = tmp_path / "run.toml"
    file.write_text(RUN.replace('"alder"', '"alder", "birch", "cedar"'))
    revoke_site(folder, "birch")
    number, told = submit(folder, file)
    assert number == 7
    assert "The run continues without revoked sites: birch." in told
    assert "Waiting for sites that are offline: alder, cedar." in told
    assert calls.started[0]["sites"] == ["alder", "birch", "cedar"]
    file.write_text(file.read_text() + "\n[privacy]\nmasked = true\n")
    with pytest.raises(UsageError, match=r"revoked sites: birch\. privacy\.masked needs 3 sites.*enrol site"):
        submit(folder, file)
    revoke_site(folder, "alder")
    revoke_site(folder, "cedar")
    file.write_text(RUN.replace('"alder"', '"alder", "birch"'))
    with pytest.raises(UsageError, match=r"revoked sites: alder, birch\. a run needs sites"):
        submit(folder, file)
    assert len(calls.started) == 1


def test_a_database_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3
    from contextlib import closing

    path = tmp_path / "link.db"
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("CREATE TABLE objects (content BLOB)")
        opened.execute("INSERT INTO objects VALUES (zeroblob(4000000))")
        opened.execute("DELETE FROM objects")
        opened.commit()
    size = path.stat().st_size
    pack(path)
    assert path.stat().st_size == size  # not worth it
    monkeypatch.setattr("multiseg.federation.flower.serve.SLACK_BYTES", 1_000_000)
    pack(path)
    assert path.stat().st_size < size / 10


@pytest.mark.parametrize("name", ["flower.serve", "gate.gate", "flower.steward", "flower.control", "identity.enrol"])
def test_what_only_watches_does_not_load_what_trains(name: str) -> None:
    code = f"import sys, multiseg.federation.{name}; print('torch' in sys.modules or 'flwr' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert told.stdout.strip() == "False"
