"""A server in the SuperLink's place, for real nodes: TLS, Flower's calls, and whatever can go wrong with both."""

import http.server
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.proto.fleet_pb2 import ActivateNodeResponse, DeactivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

from multiseg.federation.identity.certificates import make_authority, make_certificate, make_site_key, write_secret

NODE_ID = 7
ANSWERS = {
    "activate-node": ActivateNodeResponse(node_id=NODE_ID),
    "deactivate-node": DeactivateNodeResponse(),
    "pull-messages": PullMessagesResponse(),
    "send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
}
FILES = ("server.crt", "server.key")


def make_kit(folder: Path, name: str = "") -> Path:
    """A folder with an authority and the server's certificate from it, and a site's key."""
    (made := folder / name).mkdir(parents=True, exist_ok=True)
    make_authority(made / "ca.crt", made / "ca.key")
    make_certificate(made, ("ca.crt", "ca.key"), FILES, ["127.0.0.1"])
    write_secret(made / "site.key", make_site_key()[0])
    return made


class Fleet:
    """What the server says: `faults` holds status and body by call, "" for every call; `calls` counts what came, `done`
    what was answered without one."""

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.calls: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.faults: dict[str, tuple[int, bytes]] = {}
        self.address = ""

    def show(self, folder: Path) -> None:
        """Show another certificate from now on."""
        self.context.load_cert_chain(*(folder / name for name in FILES))

    def answer(self, call: str) -> tuple[int, bytes]:
        self.calls[call] += 1
        fault = self.faults.get(call, self.faults.get(""))
        if fault is not None:
            return fault
        self.done[call] += 1
        return (200, ANSWERS[call].SerializeToString()) if call in ANSWERS else (404, b"")


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """One that serves, with the certificate of a kit."""
    made = Fleet()
    made.show(folder)

    class Handler(http.server.BaseHTTPRequestHandler):  # HTTP/1.0: a handshake for every call
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = made.answer(self.path.rpartition("/")[2])
            self.send_response(status)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a handshake that failed

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = made.context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    made.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
