"""Decides who may pass the gate: sites with an enrolled key and a fresh signature, within rate limits."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from multiseg.federation.gate.connections import Budgets, network
from multiseg.federation.identity.home import SITES
from multiseg.federation.identity.registry import allowed, read_registry
from multiseg.federation.identity.signing import UNKNOWN_KEY, WRONG_CLOCK

KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
AHEAD_S, BEHIND_S = 5.0, 305.0
"""A site's clock may be off by this much; the SuperLink refuses more."""
AUDITED_A_MINUTE = 5.0
"""Refusals of one address that are logged."""
REQUESTS_A_SECOND, BURST = 200.0, 2000.0
"""Of one site."""


class GateRefusal(Exception):  # noqa: N818 (an answer, not an error of ours)
    """A request that is not passed on, and the answer to it.

    Attributes:
        reason: in few words, the same for all of its kind.
        audited: whether it is logged: of many from one address only the first are.
        body: the answer: "detail", for a person, and more entries for the site's node.
    """

    def __init__(self, status: int, reason: str, *, site: str = "", text: str = "", **more: int) -> None:
        super().__init__(reason)
        self.status, self.reason, self.site = status, reason, site
        self.audited = True
        self.body: dict[str, Any] = {"detail": text or reason, **more}


class Doorkeeper:
    """The enrolled keys, and the rates of sites and addresses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = -1
        self._names: dict[bytes, str] = {}
        self._keys: dict[bytes, ec.EllipticCurvePublicKey] = {}
        self._lines, self._requests = Budgets(), Budgets()
        self.look()

    def look(self) -> None:
        """Read the registry again if it has changed; FederationError if it is damaged, and the old keys stay."""
        path = self._folder / SITES
        seen = path.stat().st_mtime_ns if path.exists() else 0
        if seen == self._seen:
            return
        names = {key.encode(): name for key, name in allowed(read_registry(self._folder)).items()}
        keys = {key: load_pem_public_key(key) for key in names}
        self._names = names
        self._keys = {key: loaded for key, loaded in keys.items() if isinstance(loaded, ec.EllipticCurvePublicKey)}
        self._seen = seen

    def identify(self, headers: Mapping[bytes, bytes], address: str, activates: bool) -> str:
        """The site that signed a request; GateRefusal if none did, or it sends too many."""
        try:
            key = b64decode(headers[KEY_HEADER], validate=True)
            signature = b64decode(headers[SIGNATURE_HEADER], validate=True)
            timestamp = headers[TIME_HEADER]
            signed = datetime.fromisoformat(timestamp.decode("ascii"))
            if signed.tzinfo is None:
                raise ValueError("no time zone")
            self._keys[key].verify(signature, timestamp, ec.ECDSA(hashes.SHA256()))
        except (KeyError, ValueError, InvalidSignature):
            # A node stops silently at 401, and reports the error at 400.
            text = "This site's key is not enrolled at the server, or was revoked: ask the coordinating centre."
            refusal = GateRefusal(400 if activates else 401, "unknown key", text=text, code=UNKNOWN_KEY)
            raise self._refused(address, refusal) from None
        site = self._names[key]
        age = (datetime.now(UTC) - signed).total_seconds()
        if not -AHEAD_S < age < BEHIND_S:
            text = f"This site's clock is off by {abs(age):.0f} s: set it by NTP."
            raise GateRefusal(400 if activates else 503, "clock", site=site, text=text, code=WRONG_CLOCK)
        if not self._requests.spend(site, REQUESTS_A_SECOND, BURST):
            raise GateRefusal(503, "too many requests", site=site, text="Too many requests: wait.")
        return site

    def unknown_call(self, address: str) -> GateRefusal:
        """The refusal of a call that does not exist."""
        return self._refused(address, GateRefusal(404, "no such call", text="Not Found"))

    def _refused(self, address: str, refusal: GateRefusal) -> GateRefusal:
        refusal.audited = self._lines.spend(network(address), AUDITED_A_MINUTE / 60, AUDITED_A_MINUTE)
        return refusal
