"""The public port: HTTPS that lets enrolled sites make the calls a site needs, and nobody make any other.

The SuperLink behind it has no protection of its own on most of its calls, so it listens on loopback alone. A call gets
through where its path is one of `CALLS` and it is signed with the key of a site that is enrolled and not revoked
(Flower's signature of the time, which the SuperLink checks again). Bodies are passed on as they come, never kept, never
logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from multiseg.errors import FederationError
from multiseg.federation.hosting import home
from multiseg.federation.hosting.doorkeeper import Doorkeeper, Refusal
from multiseg.federation.hosting.home import Home, read_home
from multiseg.federation.hosting.impatient import ImpatientProtocol
from multiseg.federation.hosting.traffic import Traffic
from multiseg.federation.refusals import MAY_HAVE_ACTED

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

FLEET = "/v1/fleet/"
SMALL, LARGE = 256 * 2**10, 16 * 2**20
"""Bytes that a request may hold. Flower cuts what is large into objects of 5 MB."""
CALLS = {
    "activate-node": SMALL,
    "deactivate-node": SMALL,
    "send-node-heartbeat": SMALL,
    "pull-messages": SMALL,
    "push-messages": LARGE,
    "get-run": SMALL,
    "get-fab": SMALL,
    "pull-object": SMALL,
    "push-object": LARGE,
    "confirm-message-received": SMALL,
}
"""What a site's node asks for when it has a key. Registering is not among it: the server does that."""
QUIET = frozenset({"send-node-heartbeat", "pull-messages", "pull-object", "push-object", "confirm-message-received"})
"""Many of these make one exchange: they are counted, and not written down one by one."""
HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"host", b"forwarded", b"x-forwarded-for",
})  # fmt: skip
"""Headers that are for one hop, or that a client could lie with."""
CONNECTIONS, UPSTREAM_CONNECTIONS = 1024, 128
BODY_TIMEOUT_S, UPSTREAM_TIMEOUT_S, UPSTREAM_IDLE_S = 60.0, 120.0, 4.0
"""The SuperLink closes a connection that has been idle for 5 s."""
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors of a call that never reached the SuperLink."""
RETRY_AFTER = b"5"
"""Seconds until a site that was told 503 may ask again."""
KEEP_S = 2.0
LONGEST_CALL = 64
"""Letters of a call that are written down: a stranger may ask for anything."""

log = logging.getLogger("multiseg.gate")


class TooLargeError(Exception):
    """A body that goes over its limit."""


class GoneError(Exception):
    """Whoever asked stopped sending."""


class Gate:
    """The ASGI application."""

    def __init__(self, client: httpx.AsyncClient, doorkeeper: Doorkeeper, traffic: Traffic) -> None:
        self._client, self._doorkeeper, self._traffic = client, doorkeeper, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", scope["type"]
        address = scope["client"][0] if scope.get("client") else ""
        call = scope["path"].removeprefix(FLEET) if scope["path"].startswith(FLEET) else ""
        site = ""
        try:
            if scope["method"] != "POST" or call not in CALLS or scope.get("query_string"):
                raise self._doorkeeper.strange(address)
            site = self._doorkeeper.identify(dict(scope["headers"]), address, activates=call == "activate-node")
            await self._forward(scope, receive, send, site, call)
        except Refusal as refusal:
            self._traffic.refuse(refusal.reason)
            if refusal.audited:
                _audit(
                    "refused", site=refusal.site, address=address, call=call[:LONGEST_CALL] or "?", why=refusal.reason
                )
            await _answer(send, refusal.status, refusal.body)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, site: str, call: str) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP]
        length = dict(headers).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > CALLS[call]:
            raise Refusal(413, "too large", site=site)
        count = self._traffic.of(site)
        body = _body(receive, CALLS[call], count)
        request = self._client.build_request("POST", FLEET + call, headers=headers, content=body)
        try:
            response = await self._client.send(request, stream=True)
        except TooLargeError:
            raise Refusal(413, "too large", site=site) from None
        except GoneError:
            return
        except httpx.HTTPError as error:
            text = f"The server is starting again ({type(error).__name__})."
            refusal = Refusal(503, "the SuperLink is away", site=site, text=text)
            refusal.body[MAY_HAVE_ACTED] = not isinstance(error, NOT_SENT)
            raise refusal from None
        if response.status_code >= 500:  # a node would end for good at any but 502, 503 and 504
            await response.aclose()
            text = f"The server failed (HTTP {response.status_code}): its superlink.log says why. Try again."
            refusal = Refusal(503, "the SuperLink failed", site=site, text=text)
            refusal.body[MAY_HAVE_ACTED] = True
            raise refusal
        try:
            await _pass_on(response, send, count)
        finally:
            await response.aclose()
        if call not in QUIET:
            _audit("call", site=site, address=scope["client"][0], call=call, status=response.status_code)


async def _body(receive: Receive, limit: int, count: Any) -> AsyncIterator[bytes]:
    """What comes, as it comes."""
    size = 0
    while True:
        try:
            message = await asyncio.wait_for(receive(), BODY_TIMEOUT_S)
        except TimeoutError:
            raise GoneError from None
        if message["type"] == "http.disconnect":
            raise GoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLargeError
        count.up += len(part)
        if part:
            yield part
        if not message.get("more_body"):
            count.requests += 1
            return


async def _pass_on(response: httpx.Response, send: Send, count: Any) -> None:
    headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in HOP]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    with suppress(httpx.HTTPError):  # the client sees a body that ends too soon, and asks again
        async for part in response.aiter_raw():
            count.down += len(part)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    length = str(len(data)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    headers += [(b"retry-after", RETRY_AFTER)] if status == 503 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})  # the body may be unread
    await send({"type": "http.response.body", "body": data})


def _audit(what: str, **words: Any) -> None:
    log.info(json.dumps({"what": what, **words}))


async def _keep(server: Home, config: uvicorn.Config, doorkeeper: Doorkeeper, traffic: Traffic) -> None:
    """Follow the registry and the certificate, and write the counts down."""
    files = [server.at(home.CERTIFICATE), server.at(home.KEY)]
    seen = files[0].stat().st_mtime_ns
    while True:
        await asyncio.sleep(KEEP_S)
        for follow in (doorkeeper.look, traffic.save):
            try:
                follow()
            except (FederationError, OSError, ValueError) as error:  # what it knew goes on
                log.error("%s: %s", type(error).__name__, error)
        with suppress(OSError, ssl.SSLError):
            if files[0].stat().st_mtime_ns != seen:
                assert config.ssl is not None
                config.ssl.load_cert_chain(files[0], files[1])
                seen = files[0].stat().st_mtime_ns
                _audit("renewed", certificate=str(files[0]))


async def _while_kept(keeping: Awaitable[None], server: uvicorn.Server) -> None:
    """Serve as long as the registry is followed: a gate that no longer hears of revocations ends.

    Raises:
        Exception: what ended the keeping.
    """
    keeper = asyncio.ensure_future(keeping)
    keeper.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve()
        if keeper.done():
            keeper.result()
    finally:
        keeper.cancel()


async def _serve(server: Home) -> None:
    authority = ssl.create_default_context(cafile=str(server.at(home.LINK_CERTIFICATE)))
    limits = httpx.Limits(max_connections=UPSTREAM_CONNECTIONS, keepalive_expiry=UPSTREAM_IDLE_S)
    traffic, doorkeeper = Traffic(server.at(home.TRAFFIC)), Doorkeeper(server.folder)
    async with httpx.AsyncClient(
        base_url=f"https://{server.superlink}",
        verify=authority,
        limits=limits,
        timeout=UPSTREAM_TIMEOUT_S,
        trust_env=False,
        headers={"accept-encoding": "identity"},
    ) as client:
        config = uvicorn.Config(
            Gate(client, doorkeeper, traffic),
            host=server.listen,
            port=server.port,
            ssl_certfile=str(server.at(home.CERTIFICATE)),
            ssl_keyfile=str(server.at(home.KEY)),
            http=ImpatientProtocol,
            lifespan="off",
            ws="none",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            log_level="warning",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
        config.load()
        try:
            await _while_kept(_keep(server, config, doorkeeper, traffic), uvicorn.Server(config))
        finally:
            traffic.save()


def main() -> None:
    """Run the gate of a server's folder: `python -m multiseg.federation.hosting.gate HOME`."""
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    asyncio.run(_serve(read_home(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
