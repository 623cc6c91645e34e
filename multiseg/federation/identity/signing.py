"""A site's own calls to the gate, signed as Flower's node signs them: for what the node does not do itself."""

from __future__ import annotations

import ssl
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from multiseg.errors import FederationError

TIMEOUT_S = 10.0
PROBE = "/v1/fleet/get-run"
"""A call that changes nothing: it shows whether the gate accepts the key."""
PROTOBUF = "application/protobuf"
ASK_TIMEOUT_S = 5.0
ENDED = "/v1/multiseg/ended/"
"""Followed by a run's number: the gate itself answers how that run ended."""
DEACTIVATE = "/v1/fleet/deactivate-node"
NODE_ID = 0x08
"""Protobuf's tag of field 1, a varint: the only field of a request to deactivate."""
UNKNOWN_KEY, WRONG_CLOCK = 2901, 2902
"""Codes with which the gate refuses a site, besides Flower's own; its node prints them as "[code: 2901]"."""
MAY_HAVE_ACTED = "may_have_acted"
"""In the body of a 503: whether the SuperLink may have processed the call. A task that it sent is then lost."""


@runtime_checkable
class Door(Protocol):
    """The settings of a site that a call to the gate needs."""

    @property
    def server(self) -> str: ...
    @property
    def ca(self) -> Path: ...
    @property
    def key(self) -> Path: ...


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's private key; FederationError if Flower's node cannot use it."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FederationError(
            f"{path} is not a private key in OpenSSH's format without a passphrase ({error}): use the one from the "
            "start-up kit, or ask the coordinating centre."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FederationError(f"{path} is not an elliptic curve key: make one with ssh-keygen -t ecdsa -b 384.")
    return key


def signed(path: Path) -> dict[str, str]:
    """Headers of a call: the public key, the time, and its signature."""
    key = private_key(path)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now = datetime.now(UTC).isoformat()
    return {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": now,
        "flwr-signature": b64encode(key.sign(now.encode("ascii"), ec.ECDSA(hashes.SHA256()))).decode(),
        "content-type": PROTOBUF,
        "accept": PROTOBUF,
    }


def connection(door: Door) -> httpx.Client:
    """A client for the gate that uses the environment's proxy, as Flower's node does."""
    context = ssl.create_default_context(cafile=str(door.ca))
    return httpx.Client(base_url=f"https://{door.server}", verify=context, timeout=TIMEOUT_S)


def farewell(door: Door, node_id: int) -> bool:
    """Tell the server that a node died, or it would refuse the next one for a minute. Whether the server accepted."""
    try:
        with connection(door) as client:
            body = bytes([NODE_ID]) + varint(node_id)
            return client.post(DEACTIVATE, headers=signed(door.key), content=body).is_success
    except (httpx.HTTPError, OSError, ValueError, ImportError, FederationError):  # a proxy of an unknown kind, too
        return False


def how_ended(door: Door, run_id: int) -> str:
    """How a run ended at the server; "" if it is running, or the server cannot be asked."""
    try:
        with connection(door) as client:
            answer = client.post(f"{ENDED}{run_id}", headers=signed(door.key), timeout=ASK_TIMEOUT_S)
            return str(answer.json().get("ended", "")) if answer.is_success else ""
    except (httpx.HTTPError, OSError, FederationError, ValueError, AttributeError):
        return ""


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits per byte, the lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
