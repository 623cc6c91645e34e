"""What stands between a site and its server is named: a proxy, DNS, TLS, or the server. Loopback goes by no proxy."""

import http.server
import os
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fleet import Fleet, fleet, make_kit

from multiseg.errors import FederationError
from multiseg.federation.flower.control import controlling
from multiseg.federation.flower.environment import NO_PROXY
from multiseg.federation.flower.executor import NodeClient
from multiseg.federation.flower.reaching import explained, is_on_the_way, proxy_for, unreachable
from multiseg.federation.flower.serve import children
from multiseg.federation.identity.home import LINK_CERTIFICATE, Home
from multiseg.federation.identity.signing import farewell

DEAD = "http://nurse:s3cret@127.0.0.1:9"
SPELLINGS = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


@dataclass(frozen=True)
class Kit:
    server: str
    ca: Path
    key: Path


@pytest.fixture(autouse=True)
def no_proxy_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SPELLINGS, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def served(kit: Path) -> Iterator[tuple[Fleet, Kit]]:
    with fleet(kit) as made:
        yield made, Kit(made.address, kit / "ca.crt", kit / "site.key")


@contextmanager
def proxy(answer: str) -> Iterator[str]:
    """A proxy that says this to whoever asks for a tunnel."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(f"HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_server_that_answers_is_reached_whatever_it_says(served: tuple[Fleet, Kit]) -> None:
    assert unreachable(served[1]) == ""  # 404
    served[0].faults = {"": (401, b"")}
    assert unreachable(served[1]) == ""


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_fails_is_not_reached(served: tuple[Fleet, Kit], status: int) -> None:
    served[0].faults = {"": (status, b"This site's clock is off")}
    assert unreachable(served[1]) == f"{served[1].server} answers HTTP {status}: This site's clock is off"


@pytest.mark.parametrize("name", SPELLINGS[:4])
def test_a_dead_proxy_is_blamed_and_not_the_server(
    served: tuple[Fleet, Kit], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, DEAD)
    said = unreachable(served[1])
    assert said.startswith("the proxy http://127.0.0.1:9, set by HTTPS_PROXY or ALL_PROXY, cannot be reached")
    assert "NO_PROXY" in said
    assert "s3cret" not in said
    assert "nothing listens" not in said
    assert not farewell(served[1], 7)


@pytest.mark.parametrize("around", ["127.0.0.1", "*", "example.org,127.0.0.1"])
def test_a_server_in_no_proxy_is_dialled_directly(
    served: tuple[Fleet, Kit], around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", DEAD)
    monkeypatch.setenv("NO_PROXY", around)
    assert proxy_for(served[1].server) == ""
    assert unreachable(served[1]) == ""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("407 Proxy Authentication Required", "asks for a name and a password"),
        ("403 Forbidden", "blocks"),
        ("502 Bad Gateway", "blocks"),
        ("503 Service Unavailable", "blocks"),
    ],
)
def test_what_a_proxy_refuses_is_said_with_what_to_do(
    served: tuple[Fleet, Kit], answer: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(answer) as address:
        monkeypatch.setenv("HTTPS_PROXY", address)
        said = unreachable(served[1])
    assert said.startswith(f"the proxy {address} {told}")
    assert answer in said


@pytest.mark.parametrize("kind", ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9"])
def test_a_proxy_of_a_kind_that_cannot_be_used(
    served: tuple[Fleet, Kit], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", kind)
    said = unreachable(served[1])
    assert said.startswith(f"the proxy {kind} is of a kind that is not supported: set HTTPS_PROXY=http://HOST:PORT")
    assert not farewell(served[1], 7)


def test_without_a_proxy_the_server_or_dns_is_blamed() -> None:
    def said(text: str) -> str:
        return explained("fed.example.org:8443", Path("ca.crt"), httpx.ConnectError(text))

    assert said("[Errno 111] Connection refused").startswith("nothing listens at fed.example.org, port 8443")
    assert "DNS does not answer" in said("[Errno -3] Temporary failure in name resolution")
    assert not is_on_the_way(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired"))


@pytest.mark.parametrize("name", [*SPELLINGS, "socks"])
def test_the_control_calls_of_a_centre_go_by_no_proxy(
    kit: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY" if name == "socks" else name, "socks5://127.0.0.1:9" if name == "socks" else DEAD)
    monkeypatch.setenv("NO_PROXY", "example.org")
    (tmp_path / LINK_CERTIFICATE).write_bytes((kit / "ca.crt").read_bytes())
    with fleet(kit) as made:
        home = Home(tmp_path, ("127.0.0.1",), superlink_port=int(made.address.rpartition(":")[2]))
        with controlling(home) as control, pytest.raises(FederationError, match=r"refused \(404\)"):
            control.nodes()
    assert made.calls["list-nodes"] == 1
    assert os.environ["NO_PROXY"] == "example.org"
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_the_executor_reaches_its_node_by_no_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, DEAD)
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(503)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *said: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        node = NodeClient(f"127.0.0.1:{server.server_address[1]}", b"secret" * 10)
        assert node.acquire() == ""
        node.close()
        server.shutdown()
    assert len(asked) == 1


def test_the_processes_of_a_centre_know_no_proxy(tmp_path: Path) -> None:
    server = Home(tmp_path, ("127.0.0.1",))
    for child in children(server, print):
        assert {name: child.environment[name] for name in NO_PROXY} == {"NO_PROXY": "*", "no_proxy": "*"}
