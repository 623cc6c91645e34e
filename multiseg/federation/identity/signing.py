"""A site's own calls to the gate, signed as Flower's node signs them: for what the node cannot say of itself."""

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
ASKED = "/v1/fleet/get-run"
"""A call that changes nothing: it shows whether the gate lets the key pass."""
PROTOBUF = "application/protobuf"
ASK_TIMEOUT_S = 5.0
ENDED = "/v1/multiseg/ended/"
"""With a run's number behind it: the gate itself answers how that run has ended."""
DEACTIVATE = "/v1/fleet/deactivate-node"
NODE_ID = 0x08
"""Field 1, a varint: the one that a request to deactivate holds."""
UNKNOWN_KEY, WRONG_CLOCK = 2901, 2902
"""Codes with which the gate refuses a site, beside Flower's own; its node prints them as "[code: 2901]"."""
MAY_HAVE_ACTED = "may_have_acted"
"""In the body of a 503: whether the SuperLink may have done what it was asked. A task it handed out is then lost."""


@runtime_checkable
class Door(Protocol):
    """What of a site's settings it takes to speak with the gate."""

    @property
    def server(self) -> str: ...
    @property
    def ca(self) -> Path: ...
    @property
    def key(self) -> Path: ...


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key that a site proves itself with.

    Raises:
        FederationError: it is none that Flower's node can use.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FederationError(
            f"{path} is no private key in OpenSSH's format without a passphrase ({error}): take the one of the "
            "start-up kit, or ask the coordinating centre."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FederationError(
            f"{path} is of another kind than an elliptic curve: make one with ssh-keygen -t ecdsa -b 384."
        )
    return key


def signed(path: Path) -> dict[str, str]:
    """Headers of a call: the public key, the time, and the time signed."""
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
    """To the gate, over the proxy of the environment if there is one, as Flower's node goes."""
    context = ssl.create_default_context(cafile=str(door.ca))
    return httpx.Client(base_url=f"https://{door.server}", verify=context, timeout=TIMEOUT_S)


def farewell(door: Door, node_id: int) -> bool:
    """Say that a node is gone which died: the server would refuse the next one for a minute. Whether it heard."""
    try:
        with connection(door) as client:
            body = bytes([NODE_ID]) + varint(node_id)
            return client.post(DEACTIVATE, headers=signed(door.key), content=body).is_success
    except (httpx.HTTPError, OSError, ValueError, ImportError, FederationError):  # a proxy of an unknown kind, too
        return False


def how_ended(door: Door, run_id: int) -> str:
    """How a run has ended at the server; "" where it goes on, or the server cannot be asked."""
    try:
        with connection(door) as client:
            answer = client.post(f"{ENDED}{run_id}", headers=signed(door.key), timeout=ASK_TIMEOUT_S)
            return str(answer.json().get("ended", "")) if answer.is_success else ""
    except (httpx.HTTPError, OSError, FederationError, ValueError, AttributeError):
        return ""


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
