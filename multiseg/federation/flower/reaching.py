"""The way from a site to its server: whether it is free, and what stands in it: DNS, a proxy, TLS, or the server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from multiseg.errors import FederationError
from multiseg.federation.identity.signing import ASKED, Door, connection, signed

SAID = 300
"""Letters of a refusal that are shown."""
CENTRE = "ask the coordinating centre"
BROKEN = (httpx.TransportError, OSError, ValueError, ImportError)
"""What a call raises that does not arrive; the last two for a proxy that cannot be used."""


def unreachable(door: Door) -> str:
    """Why the server does not answer; "" where it does, whatever it says."""
    try:
        with connection(door) as client:
            response = client.post(ASKED, headers=signed(door.key))
    except BROKEN as error:
        return explained(door.server, door.ca, error)
    except FederationError as error:
        return str(error)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        return f"{door.server} answers HTTP {response.status_code}: {response.text[:SAID]}"
    return ""


def is_on_the_way(error: Exception) -> bool:
    """Whether a call broke off before the server had shown who it is: that may pass by itself."""
    return isinstance(error, httpx.ProxyError) or not any(sign in str(error) for sign in ("CERTIFICATE", "SSL"))


def proxy_for(server: str) -> str:
    """The proxy by which the environment sends calls to a server, without name and password; "" for none."""
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all") or ""
    if not proxy or proxy_bypass(server):
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def explained(server: str, ca: Path, error: Exception) -> str:
    """What to do where the server cannot be reached."""
    said = str(error) or type(error).__name__
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    proxy = proxy_for(server)
    if proxy and is_on_the_way(error):
        return f"{_at_proxy(proxy, server, host, error)} ({said})."
    for sign, told in (
        ("Name or service not known", f"the name {host} is unknown here: check `server`, and this machine's DNS"),
        ("No address associated", f"the name {host} has no address: check `server`, and this machine's DNS"),
        ("Temporary failure in name", f"this machine's DNS does not answer when asked for {host}"),
        ("Connection refused", f"nobody listens at {host}, port {port}: is the server running, is the port right?"),
        ("timed out", f"{host} does not answer: ask your network department to let HTTPS out to it, port {port}"),
        ("Hostname mismatch", f"the server's certificate is not for {host}: use a name that it holds, or {CENTRE}"),
        ("IP address mismatch", f"the server's certificate is not for {host}: use a name that it holds, or {CENTRE}"),
        ("has expired", f"the server's certificate ran out: {CENTRE} to renew it"),
        ("not yet valid", "the server's certificate is not valid yet: is this machine's clock behind?"),
        (
            "CERTIFICATE_VERIFY_FAILED",
            f"the server is not the one of {ca}, or a proxy between opens what is encrypted: take the "
            "authority's certificate of the start-up kit, or the centre's new one if it has changed since, and ask "
            "your network department to leave this host out",
        ),
    ):
        if sign in said:
            return f"{told} ({said})."
    return f"{server} cannot be reached: {said}."


def _at_proxy(proxy: str, server: str, host: str, error: Exception) -> str:
    """What to do where a call came as far as the proxy of this account's environment, or not even there."""
    around = f"or name {host} in NO_PROXY if it can be reached without"
    if isinstance(error, (ImportError, ValueError)):
        return f"the proxy {proxy} is of a kind that cannot be used here: set HTTPS_PROXY=http://HOST:PORT, {around}"
    if isinstance(error, httpx.ProxyError) and "407" in str(error):
        return (
            f"the proxy {proxy} asks for a name and a password, or does not accept those that it got: set "
            "HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT (other signs than letters and digits as %XX)"
        )
    if isinstance(error, httpx.ProxyError):
        return f"the proxy {proxy} does not let through to {server}: ask your network department to allow it"
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return f"the proxy {proxy}, which HTTPS_PROXY or ALL_PROXY names, cannot be reached: check it, {around}"
    return f"{server} does not answer by way of the proxy {proxy}: ask your network department about both"
