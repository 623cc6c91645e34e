"""The public HTTPS port: enrolled sites can make the calls that a site needs, and all other calls are refused.

The SuperLink behind it does not protect most of its calls, so it listens only on loopback. A call gets through if its
path is one of `CALLS` and it is signed with the key of a site that is enrolled and not revoked (Flower's signature of
the time, which the SuperLink checks again). Both are known from the headers, so the body of a refused call is never
read. Bodies are passed on as they come, never stored, never logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from multiseg.errors import FederationError, ResourceError
from multiseg.federation.centre.answer_size import ROOM, allowed, note_too_large
from multiseg.federation.gate.connections import Connection, Connections
from multiseg.federation.gate.doorkeeper import Doorkeeper, GateRefusal
from multiseg.federation.gate.endings import how_ended
from multiseg.federation.gate.listener import Listener, ended_by_signals, prepare, tls, while_kept
from multiseg.federation.gate.traffic import Count, Traffic
from multiseg.federation.identity import home
from multiseg.federation.identity.home import Home, read_home
from multiseg.federation.identity.signing import ENDED, MAY_HAVE_ACTED

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

FLEET = "/v1/fleet/"
SMALL, LARGE = 256 * 2**10, 16 * 2**20
"""Bytes of a request. Flower splits large messages into objects of 5 MB."""
CALLS = {
    **dict.fromkeys(("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "get-run"), SMALL),
    **dict.fromkeys(("get-fab", "pull-object", "confirm-message-received"), SMALL),
    **dict.fromkeys(("push-messages", "push-object"), LARGE),
}
"""The calls of a site's node that has a key, and their limits. Registering is missing: the server does that."""
HOW_ENDED = re.compile(re.escape(ENDED) + "([0-9]{1,20})")
"""The call that the gate answers itself: how a run ended, if it has."""
QUIET = frozenset({"send-node-heartbeat", "pull-messages", "pull-object", "push-object", "confirm-message-received"})
"""Frequent calls: they are counted, but not logged one by one."""
HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"host", b"forwarded", b"x-forwarded-for",
})  # fmt: skip
"""Headers that are for one hop, or that a client could forge."""
UPSTREAM_CONNECTIONS = 128
UPSTREAM_TIMEOUT_S, UPSTREAM_IDLE_S = 120.0, 4.0
"""The SuperLink closes a connection that has been idle for 5 s."""
STALL_S, SLOWEST = 60.0, 2**10
"""The longest pause in a body, and the lowest rate in bytes per second."""
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors of a call that never reached the SuperLink."""
RETRY_AFTER = b"5"
"""Seconds until a site may retry after a 503."""
KEEP_S = 2.0
TOO_LARGE = "The site's answer is over {:.2f} MiB, the centre's limit ({})."
FROM_NETWORK, FROM_SETTING = "twice the size of the largest network of its runs", "max_answer_mib in its home.toml"
LONGEST_CALL = 64
"""Letters of a call that are logged: a stranger may send anything."""

log = logging.getLogger("multiseg.gate")


class GoneError(Exception):
    """The client stopped sending."""


class Gate:
    """The ASGI application.

    Args:
        answer_bytes: limit for one answer of a site, over all its objects, if lower than the limit from the networks of
            the runs; 0 for none.
        folder: of the server, which records which runs have ended and how large their answers may be.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        doorkeeper: Doorkeeper,
        traffic: Traffic,
        connections: Connections,
        answer_bytes: int,
        folder: Path = Path(),
    ) -> None:
        self._client, self._doorkeeper, self._traffic = client, doorkeeper, traffic
        self._connections, self._answer_bytes, self._folder = connections, answer_bytes, folder
        self._answers: dict[str, int] = {}
        self._limits: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", scope["type"]
        address = scope["client"][0] if scope.get("client") else ""
        call = scope["path"].removeprefix(FLEET) if scope["path"].startswith(FLEET) else ""
        connection = scope.get("state", {}).get("connection") or Connection(address)
        asked = HOW_ENDED.fullmatch(scope["path"])
        try:
            if scope["method"] != "POST" or scope.get("query_string") or not (asked or call in CALLS):
                raise self._doorkeeper.unknown_call(address)
            site = self._doorkeeper.identify(dict(scope["headers"]), address, activates=call == "activate-node")
            with self._connections.answering(connection, site):
                if asked:
                    await _answer(send, 200, {"ended": how_ended(self._folder, asked[1])})
                else:
                    await self._forward(scope, receive, send, site, call, address)
        except GateRefusal as refusal:
            self._traffic.refuse(refusal.reason)
            if refusal.audited:
                _audit(
                    "refused", site=refusal.site, address=address, call=call[:LONGEST_CALL] or "?", why=refusal.reason
                )
            await _answer(send, refusal.status, refusal.body)
        except TimeoutError:  # the client reads too slowly
            connection.end()

    async def _forward(self, scope: Scope, receive: Receive, send: Send, site: str, call: str, address: str) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP]
        length = dict(headers).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > CALLS[call]:
            raise GateRefusal(413, "too large", site=site)
        if call == "push-messages":
            self._answers[site], self._limits[site] = 0, ROOM  # the answer's objects follow
        count = self._traffic.of(site)
        body = self._counted(_body(receive, CALLS[call]), site, call, count)
        request = self._client.build_request("POST", FLEET + call, headers=headers, content=body)
        try:
            response = await self._client.send(request, stream=True)
        except GoneError:
            return
        except httpx.HTTPError as error:
            text = f"The server is starting again ({type(error).__name__})."
            more = {MAY_HAVE_ACTED: not isinstance(error, NOT_SENT)}
            raise GateRefusal(503, "the SuperLink is away", site=site, text=text, **more) from None
        if response.status_code >= 500:  # a node retries only after 502, 503 and 504
            await response.aclose()
            text = f"The server failed (HTTP {response.status_code}): its superlink.log says why. Try again."
            raise GateRefusal(503, "the SuperLink failed", site=site, text=text, **{MAY_HAVE_ACTED: True})
        try:
            await _pass_on(response, send, count)
        finally:
            await response.aclose()
        if call not in QUIET:
            _audit("call", site=site, address=address, call=call, status=response.status_code)

    async def _counted(self, body: AsyncIterator[bytes], site: str, call: str, count: Count) -> AsyncIterator[bytes]:
        """The body, counted as traffic and as part of the site's answer."""
        try:
            async for part in body:
                count.up += len(part)
                if call == "push-object":
                    self._count_answer(site, len(part))
                yield part
            count.requests += 1
        except GateRefusal as refusal:
            refusal.site = site
            raise

    def _count_answer(self, site: str, size: int) -> None:
        """Raises GateRefusal if a site's answer is too large, and records that for the run that waits for it."""
        self._answers[site] = self._answers.get(site, 0) + size
        bound = self._answer_bytes or sys.maxsize
        if self._answers[site] <= min(self._limits.get(site, 0), bound):
            return
        self._limits[site] = allowed(self._folder / home.RUNS)
        limit = min(self._limits[site], bound)
        if self._answers[site] > limit:
            text = TOO_LARGE.format(limit / 2**20, FROM_SETTING if limit == bound else FROM_NETWORK)
            with suppress(ResourceError):
                note_too_large(self._folder, site, text)
            raise GateRefusal(413, "answer too large", text=text)


async def _body(receive: Receive, limit: int) -> AsyncIterator[bytes]:
    """The parts of a body as they arrive."""
    size, now = 0, asyncio.get_running_loop().time
    deadline = now() + STALL_S
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - now()))
        except TimeoutError:
            raise GateRefusal(503, "too slow", text="The body came too slowly: try again.") from None
        if message["type"] == "http.disconnect":
            raise GoneError
        part = message.get("body", b"")
        size += len(part)
        deadline = min(now() + STALL_S, deadline + len(part) / SLOWEST)
        if size > limit:
            raise GateRefusal(413, "too large")
        if part:
            yield part
        if not message.get("more_body"):
            return


async def _pass_on(response: httpx.Response, send: Send, count: Count) -> None:
    """Pass a response on; TimeoutError if the client does not read it."""
    headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in HOP]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    with suppress(httpx.HTTPError):  # the client sees a body that ends too soon, and retries
        async for part in response.aiter_raw():
            count.down += len(part)
            await asyncio.wait_for(send({"type": "http.response.body", "body": part, "more_body": True}), STALL_S)
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


async def _keep(server: Home, context: ssl.SSLContext, doorkeeper: Doorkeeper, traffic: Traffic) -> None:
    """Follow the registry and the certificate, and save the counts."""
    files = [server.at(home.CERTIFICATE), server.at(home.KEY)]
    seen = files[0].stat().st_mtime_ns
    while True:
        await asyncio.sleep(KEEP_S)
        for follow in (doorkeeper.look, traffic.save):
            try:
                follow()
            except (FederationError, OSError, ValueError) as error:  # the old registry stays in use
                log.error("%s: %s", type(error).__name__, error)
        with suppress(OSError, ssl.SSLError):
            if files[0].stat().st_mtime_ns != seen:
                context.load_cert_chain(files[0], files[1])
                seen = files[0].stat().st_mtime_ns
                _audit("renewed", certificate=str(files[0]))


async def _serve(server: Home) -> None:
    authority = ssl.create_default_context(cafile=str(server.at(home.LINK_CERTIFICATE)))
    limits = httpx.Limits(max_connections=UPSTREAM_CONNECTIONS, keepalive_expiry=UPSTREAM_IDLE_S)
    traffic, doorkeeper = Traffic(server.at(home.TRAFFIC)), Doorkeeper(server.folder)
    connections, stop = Connections(), ended_by_signals()
    context = tls(server.at(home.CERTIFICATE), server.at(home.KEY))
    async with httpx.AsyncClient(
        base_url=f"https://{server.superlink}",
        verify=authority,
        limits=limits,
        timeout=UPSTREAM_TIMEOUT_S,
        trust_env=False,
        headers={"accept-encoding": "identity"},
    ) as client:
        gate = Gate(client, doorkeeper, traffic, connections, round(server.max_answer_mib * 2**20), server.folder)
        prepare()
        serving = Listener(gate, context, connections).serve(server.listen, server.port, stop)
        try:
            await while_kept(_keep(server, context, doorkeeper, traffic), serving, stop)
        finally:
            traffic.save()


def main() -> None:
    """Run the gate of a server's folder: `python -m multiseg.federation.gate.gate HOME`."""
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    asyncio.run(_serve(read_home(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
