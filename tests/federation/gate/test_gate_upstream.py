"""What a site is told where the SuperLink behind the gate fails: always something that its node survives."""

from pathlib import Path

import httpx
import pytest
from flwr.supercore.retry.http_retry import _RETRYABLE_STATUS_CODES
from made_centre import signed
from test_gate import House

from multiseg.federation.gate.doorkeeper import Doorkeeper
from multiseg.federation.gate.gate import Receive, Scope, Send
from multiseg.federation.identity.signing import MAY_HAVE_ACTED


def answers(status: int) -> httpx.ASGITransport:
    async def superlink(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"detail": "Internal server error."}'})

    return httpx.ASGITransport(superlink)


def breaks(error: type[httpx.TransportError]) -> httpx.MockTransport:
    def handle(request: httpx.Request) -> httpx.Response:
        raise error("database is locked")

    return httpx.MockTransport(handle)


BROKEN = {
    **{f"HTTP {status}": (answers(status), True) for status in (500, 501, 502, 503, 504, 507)},
    "refused": (breaks(httpx.ConnectError), False),
    "no connection free": (breaks(httpx.PoolTimeout), False),
    "reset": (breaks(httpx.ReadError), True),
    "silent": (breaks(httpx.ReadTimeout), True),
    "gone": (breaks(httpx.RemoteProtocolError), True),
    "closed while it was sent": (breaks(httpx.WriteError), True),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("call", ["activate-node", "pull-messages", "push-object", "send-node-heartbeat"])
def test_a_failing_superlink_is_a_503_that_a_node_tries_again(tmp_path: Path, name: str, call: str) -> None:
    house = House(tmp_path)
    house.upstream, may_have_acted = BROKEN[name]
    response = house.post(call, signed(house.key))
    assert response.status_code == 503
    assert response.status_code in _RETRYABLE_STATUS_CODES
    assert response.headers["retry-after"] == "5"
    assert response.json()[MAY_HAVE_ACTED] is may_have_acted


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 412])
def test_what_the_superlink_decides_is_passed_on_as_it_is(tmp_path: Path, status: int) -> None:
    house = House(tmp_path)
    house.upstream = answers(status)
    house.doorkeeper = Doorkeeper(house.centre)
    response = house.post("pull-messages", signed(house.key))
    assert (response.status_code, response.json()) == (status, {"detail": "Internal server error."})
