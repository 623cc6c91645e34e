"""A coordinating centre's folder for tests, and requests signed as Flower's nodes sign them."""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from fastapi.routing import iter_route_contexts
from flwr.proto import control_pb2, fleet_pb2, runtime_pb2
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.main import create_app
from servers import free_port

from multiseg.federation.identity.enrol import enrol_server, enrol_site

NEEDED = {
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "pull-object",
    "push-object",
    "confirm-message-received",
}
"""Of the Fleet service, what a node with a key of its own calls (flwr/supernode/fleet_http_connection.py)."""


def make_centre(folder: Path) -> Path:
    """A server's folder with free ports."""
    ports = {name: free_port() for name in ("port", "superlink_port", "metrics_port")}
    enrol_server(folder / "centre", ["127.0.0.1"], ports)
    settings = folder / "centre" / "home.toml"
    said = settings.read_text().replace('listen = "0.0.0.0"', 'listen = "127.0.0.1"')
    settings.write_text(said.replace("min_free_gib = 5.0", "min_free_gib = 0.1"))
    return folder / "centre"


def make_site(centre: Path, name: str) -> ec.EllipticCurvePrivateKey:
    """Admit a site; its key, which lies in `NAME-kit` beside the centre."""
    kit, _ = enrol_site(centre, name, centre.parent / f"{name}-kit")
    key = load_ssh_private_key((kit / "site.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def signed(key: ec.EllipticCurvePrivateKey, late_s: float = 0.0) -> dict[str, str]:
    """Headers of a request."""
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    said = (datetime.now(UTC) - timedelta(seconds=late_s)).isoformat()
    return {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": said,
        "flwr-signature": b64encode(key.sign(said.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
        "content-type": "application/protobuf",
    }


def every_path() -> set[tuple[str, str]]:
    """Method and path of all that a SuperLink answers, also of services that have no path yet."""
    paths = set(PROTOBUF_REQUEST_TYPES)
    for context in iter_route_contexts(create_app().routes):
        paths |= {(method, context.path) for method in context.methods or {"POST"}}
    for module, name in ((fleet_pb2, "fleet"), (control_pb2, "control"), (runtime_pb2, "runtime")):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                dashed = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in method.name)
                paths.add(("POST", f"/v1/{name}/{dashed.lstrip('-')}"))
                paths.add(("POST", f"/{service.full_name}/{method.name}"))
    return paths
