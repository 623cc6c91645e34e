"""Who may read the page: the browser that opened the address with the ticket, on this computer."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from email.message import Message
from threading import Lock

LOOPBACK = "127.0.0.1"
OWN_NAMES = (LOOPBACK, "localhost")
"""Hosts by which a browser may call this server. Another name may be that of a stranger's page, whose name was made to
point here (DNS rebinding)."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # NiiVue's letters are a picture in its own code
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every answer."""


@dataclass
class PageAccess:
    """The secrets of one server.

    Attributes:
        ticket: stands in the printed address, and is good for one browser: addresses show in lists of processes and in
            histories, where other people of this computer may read them.
        secret: the cookie that the browser gets for it.
    """

    port: int
    ticket: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/?ticket={self.ticket}"

    @property
    def cookie_name(self) -> str:
        """Cookies are those of a host and not of a port, so two servers need two names."""
        return f"multiseg-view-{self.port}"

    @property
    def cookie(self) -> str:
        return f"{self.cookie_name}={self.secret}; Path=/; HttpOnly; SameSite=Strict"

    def redeem(self, ticket: str) -> bool:
        """Whether the ticket is right; it is so only once."""
        with self._lock:
            is_right = bool(self.ticket) and hmac.compare_digest(ticket.encode(), self.ticket.encode())
            if is_right:
                self.ticket = ""
            return is_right

    def has_cookie(self, headers: Message[str, str]) -> bool:
        """Whether a request has the cookie."""
        # Not by http.cookies: one odd cookie of another program on this computer would hide all of them.
        own = f"{self.cookie_name}={self.secret}".encode()
        sent = headers.get("Cookie", "").split(";")
        return any(hmac.compare_digest(cookie.strip().encode(), own) for cookie in sent)

    def why_foreign(self, headers: Message[str, str]) -> str:
        """Why a request is not one of this server's own page; "" if it may be."""
        host = headers.get("Host", "")
        if host not in [f"{name}:{self.port}" for name in OWN_NAMES]:
            return f"this server is {LOOPBACK}:{self.port}, not {host[:100]!r}."
        origin = headers.get("Origin")
        if origin is not None and origin not in [f"http://{name}:{self.port}" for name in OWN_NAMES]:
            return "the request comes from another page."
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "the request comes from another page."
        return ""
