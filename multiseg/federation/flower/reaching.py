"""Why a site cannot reach its server: DNS, a proxy, TLS, or the server itself."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from multiseg.errors import FederationError
from multiseg.federation.identity.signing import PROBE, Door, connection, signed

SHOWN = 300
"""Letters of a refusal that are shown."""
CENTRE = "ask the coordinating centre"
BROKEN = (httpx.TransportError, OSError, ValueError, ImportError)
"""Errors of a call that does not arrive; the last two for a proxy that cannot be used."""


def unreachable(door: Door) -> str:
    """Why the server does not answer; "" if it does, whatever the answer."""
    try:
        with connection(door) as client:
            response = client.post(PROBE, headers=signed(door.key))
    except BROKEN as error:
        return explained(door.server, door.ca, error)
    except FederationError as error:
        return str(error)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        return f"{door.server} answers HTTP {response.status_code}: {response.text[:SHOWN]}"
    return ""


def is_on_the_way(error: Exception) -> bool:
    """Whether a call failed before the server had identified itself: that may be temporary."""
    return isinstance(error, httpx.ProxyError) or not any(sign in str(error) for sign in ("CERTIFICATE", "SSL"))


def proxy_for(server: str) -> str:
    """The environment's proxy for calls to a server, without name and password; "" for none."""
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all") or ""
    if not proxy or proxy_bypass(server):
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def explained(server: str, ca: Path, error: Exception) -> str:
    """What to do where the server cannot be reached."""
    message = str(error) or type(error).__name__
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    proxy = proxy_for(server)
    if proxy and is_on_the_way(error):
        return f"{_at_proxy(proxy, server, host, error)} ({message})."
    for sign, advice in (
        ("Name or service not known", f"the name {host} is unknown here: check `server`, and this machine's DNS"),
        ("No address associated", f"the name {host} has no address: check `server`, and this machine's DNS"),
        ("Temporary failure in name", f"this machine's DNS does not answer when asked for {host}"),
        ("Connection refused", f"nothing listens at {host}, port {port}: is the server running, is the port right?"),
        ("timed out", f"{host} does not answer: ask your network department to allow HTTPS to it, port {port}"),
        ("Hostname mismatch", f"the server's certificate is not for {host}: use a name that it holds, or {CENTRE}"),
        ("IP address mismatch", f"the server's certificate is not for {host}: use a name that it holds, or {CENTRE}"),
        ("has expired", f"the server's certificate has expired: {CENTRE} to renew it"),
        ("not yet valid", "the server's certificate is not valid yet: is this machine's clock behind?"),
        (
            "CERTIFICATE_VERIFY_FAILED",
            f"the server is not the one of {ca}, or a proxy in between decrypts the traffic: use the authority's "
            "certificate of the start-up kit, or the centre's new one if it has changed since, and ask your network "
            "department to exempt this host",
        ),
    ):
        if sign in message:
            return f"{advice} ({message})."
    return f"cannot reach {server}: {message}."


def _at_proxy(proxy: str, server: str, host: str, error: Exception) -> str:
    """What to do if a call failed at the environment's proxy, or before it."""
    around = f"or add {host} to NO_PROXY if it can be reached without"
    if isinstance(error, (ImportError, ValueError)):
        return f"the proxy {proxy} is of a kind that is not supported: set HTTPS_PROXY=http://HOST:PORT, {around}"
    if isinstance(error, httpx.ProxyError) and "407" in str(error):
        return (
            f"the proxy {proxy} asks for a name and a password, or does not accept the given ones: set "
            "HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT (characters other than letters and digits as %XX)"
        )
    if isinstance(error, httpx.ProxyError):
        return f"the proxy {proxy} blocks {server}: ask your network department to allow it"
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return f"the proxy {proxy}, set by HTTPS_PROXY or ALL_PROXY, cannot be reached: check it, {around}"
    return f"{server} does not answer through the proxy {proxy}: ask your network department about both"
