"""Servers that tests read from and write to, and what they were asked for."""

import http.client
import http.server
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of an S3 server with nothing in it."""
    port = free_port()
    arguments = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def make_bucket(server: str, name: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()


def reach_bucket(server: str, name: str, patch: pytest.MonkeyPatch) -> str:
    """Make a bucket, and have the environment name its server. Returns its URL."""
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        patch.delenv(variable)
    patch.setenv("AWS_ENDPOINT_URL", server)
    patch.setenv("AWS_ALLOW_HTTP", "true")
    patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_REGION", "us-east-1")
    make_bucket(server, name)
    return f"s3://{name}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@contextmanager
def serving(handler: object) -> Iterator[str]:
    """The URL of a server with such a handler of requests."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class PlainFiles(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` answers, without its prints; `asked` says what was wanted."""

    asked: list[tuple[str, str]]

    def __init__(self, *args: object, asked: list[tuple[str, str]], **options: object) -> None:
        self.asked = asked
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.asked.append((self.command, self.path))
        return parsed

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass
class Line:
    """The way to a distant server: what went over it, and when answers come back.

    Attributes:
        asked: method, path and range of each request.
        latency_s: what each waits for.
        together: no answer comes before so many requests wait for theirs; whoever asks for one after the other
            is told after ten seconds that this never happens.
        lost: what is taken out of a request's range: "tail" where it is for the last bytes, "range" always.
        troubles: what becomes of the next requests: the status of an error, "reset", or "cut" in the middle of the
            answer; "" is none.
    """

    asked: list[tuple[str, str, str]] = field(default_factory=list)
    latency_s: float = 0.0
    lost: str = ""
    together: int = 1
    troubles: Iterator[str] = field(default_factory=lambda: itertools.repeat(""))
    _waiting: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def num(self, part: str = "", method: str = "GET") -> int:
        return sum(part in path and method == one for one, path, _ in self.asked)

    def pass_over(self, method: str, path: str, part: str) -> bool:
        """Wait like a request; whether it may be answered."""
        with self._changed:
            self.asked.append((method, path, part))
            self._waiting += 1
            self._changed.notify_all()
            arrived = self._changed.wait_for(lambda: self._waiting >= self.together, timeout=10)
        time.sleep(self.latency_s)
        return arrived

    def expect_together(self, num: int) -> None:
        with self._changed:
            self._waiting, self.together = 0, num


def break_off(connection: socket.socket) -> None:
    """End a connection as a computer does that crashed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def far_from(server: str, line: Line) -> Iterator[str]:
    """The URL by which a server is reached over a line; what comes unsigned is signed, so that a bucket is public."""
    host, port = server.removeprefix("http://").split(":")

    class Relay(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            arrived = line.pass_over(self.command, self.path, self.headers.get("Range", ""))
            if line.lost == "range" or (line.lost == "tail" and "=-" in self.headers.get("Range", "")):
                del self.headers["Range"]
            trouble = next(line.troubles, "")
            if trouble == "reset":
                break_off(self.connection)
                self.close_connection = True
                return
            if trouble.isdecimal():
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(int(trouble))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(host, int(port))
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            signature = {"Authorization": "AWS4-HMAC-SHA256 Credential=somebody/20310101/us-east-1/s3/aws4_request"}
            connection.request(self.command, self.path, sent, signature | dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            self.send_response(answer.status if arrived else 400)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            with suppress(ConnectionError):  # whoever asked may be gone
                self.wfile.write(body[: len(body) // 2] if trouble == "cut" else body)
            self.close_connection |= trouble == "cut"

        do_HEAD = do_PUT = do_DELETE = do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Relay) as url:
        yield url
