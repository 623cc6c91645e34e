"""The public port: who passes it, with what, and what is remembered."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supernode import fleet_http_client
from made_centre import NEEDED, every_path, make_centre, make_site, signed

from multiseg.errors import FederationError
from multiseg.federation.centre import answer_size
from multiseg.federation.centre.answer_size import read_too_large
from multiseg.federation.gate import gate as module
from multiseg.federation.gate.connections import Connections
from multiseg.federation.gate.doorkeeper import Doorkeeper
from multiseg.federation.gate.endings import write_ended
from multiseg.federation.gate.gate import CALLS, Gate
from multiseg.federation.gate.listener import tls
from multiseg.federation.gate.traffic import Traffic, read_traffic
from multiseg.federation.identity.enrol import revoke_site
from multiseg.federation.identity.home import read_home


class SuperLink:
    """What stands behind the gate: it says how much it got, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    async def __call__(self, scope: module.Scope, receive: module.Receive, send: module.Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["method"], scope["path"], headers, body))
        answer = [(b"content-type", b"application/protobuf"), (b"x-version", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": b"got %d" % len(body)})


class House:
    """A gate with a SuperLink behind it and a site, alder, that is enrolled."""

    def __init__(self, folder: Path) -> None:
        self.centre = make_centre(folder)
        self.key = make_site(self.centre, "alder")
        self.superlink = SuperLink()
        self.doorkeeper = Doorkeeper(self.centre)
        self.counts = self.centre / "gate.json"
        self.traffic = Traffic(self.counts)
        self.answer_bytes = 2**29
        self.upstream: httpx.AsyncBaseTransport = httpx.ASGITransport(self.superlink)

    def ask(self, *requests: tuple[str, str, dict[str, str], object]) -> list[httpx.Response]:
        async def all_of_them() -> list[httpx.Response]:
            behind = httpx.AsyncClient(transport=self.upstream, base_url="https://superlink")
            gate = Gate(behind, self.doorkeeper, self.traffic, Connections(), self.answer_bytes, self.centre)
            front = httpx.ASGITransport(gate, client=("10.1.2.3", 999))
            async with behind, httpx.AsyncClient(transport=front, base_url="https://gate") as client:
                return [
                    await client.request(method, path, headers=headers, content=body)  # type: ignore[arg-type]
                    for method, path, headers, body in requests
                ]

        return asyncio.run(all_of_them())

    def post(self, call: str, headers: dict[str, str], body: object = b"x") -> httpx.Response:
        (response,) = self.ask(("POST", f"/v1/fleet/{call}", headers, body))
        return response


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_calls_are_those_of_a_node_with_a_key() -> None:
    assert set(CALLS) == NEEDED
    client = Path(fleet_http_client.__file__).read_text()
    for call in CALLS:
        assert f'"/v1/fleet/{call}"' in client


@pytest.mark.parametrize("call", sorted(CALLS))
def test_an_enrolled_site_makes_the_calls_it_needs(house: House, call: str) -> None:
    headers = signed(house.key) | {"flwr-version": "1.41.0", "x-forwarded-for": "1.1.1.1"}
    response = house.post(call, headers, b"four")
    assert (response.status_code, response.content) == (200, b"got 4")
    assert response.headers["x-version"] == "1"
    ((method, path, got, body),) = house.superlink.asked
    assert (method, path, body) == ("POST", f"/v1/fleet/{call}", b"four")
    assert got["flwr-signature"] == headers["flwr-signature"]
    assert got["flwr-version"] == "1.41.0"
    assert got["host"] == "superlink"
    assert "x-forwarded-for" not in got


@pytest.mark.slow
def test_nothing_else_passes_even_when_an_enrolled_site_asks(house: House) -> None:
    strange = sorted(every_path() - {("POST", f"/v1/fleet/{call}") for call in NEEDED})
    assert len(strange) > 100
    assert ("POST", "/v1/control/start-run") in strange
    found = house.ask(*((method, path, signed(house.key), b"") for method, path in strange))
    assert {response.status_code for response in found} == {404}
    assert house.superlink.asked == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/get-run/../../control/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "//v1/fleet/get-run",
        "/v1/fleet/get-run/",
        "/v1/fleet/get-run?x=1",
        "/v1/fleet/",
        "/V1/fleet/get-run",
        "/",
    ],
)
def test_a_path_that_only_looks_like_one_does_not_pass(house: House, path: str) -> None:
    (response,) = house.ask(("POST", path, signed(house.key), b""))
    assert response.status_code == 404
    assert house.superlink.asked == []


def without(name: str) -> Callable[[House], dict[str, str]]:
    return lambda house: {key: value for key, value in signed(house.key).items() if key != name}


REFUSED: dict[str, Callable[[House], dict[str, str]]] = {
    "no headers": lambda house: {},
    "no signature": without("flwr-signature"),
    "no key": without("flwr-public-key"),
    "no time": without("flwr-timestamp"),
    "a key that is not enrolled": lambda house: signed(ec.generate_private_key(ec.SECP384R1())),
    "another's signature": lambda house: (
        signed(house.key) | {"flwr-signature": signed(ec.generate_private_key(ec.SECP384R1()))["flwr-signature"]}
    ),
    "a time that was not signed": lambda house: signed(house.key) | {"flwr-timestamp": "2031-05-05T10:00:00+00:00"},
    "no base64": lambda house: signed(house.key) | {"flwr-signature": "%%%"},
    "no time zone": lambda house: signed(house.key) | {"flwr-timestamp": "2031-05-05T10:00:00"},
}


@pytest.mark.parametrize("how", REFUSED)
def test_who_is_not_enrolled_does_not_reach_the_superlink(house: House, how: str) -> None:
    headers = REFUSED[how](house)
    assert house.post("pull-messages", headers).status_code == 401  # a node ends at this
    told = house.post("activate-node", headers)
    assert (told.status_code, told.json()["code"]) == (400, 2901)  # and tells this
    assert "not enrolled" in told.json()["detail"]
    assert house.superlink.asked == []


def test_a_revoked_site_is_refused_as_soon_as_the_registry_is_looked_at(house: House) -> None:
    revoke_site(house.centre, "alder")
    house.doorkeeper.look()
    assert house.post("send-node-heartbeat", signed(house.key)).status_code == 401


def test_a_site_that_is_enrolled_later_passes(house: House) -> None:
    birch = make_site(house.centre, "birch")
    assert house.post("get-run", signed(birch)).status_code == 401
    house.doorkeeper.look()
    assert house.post("get-run", signed(birch)).status_code == 200


def test_a_damaged_registry_changes_nothing(house: House) -> None:
    (house.centre / "sites.json").write_text('{"alder": {')
    with pytest.raises(FederationError, match=r"sites\.json is damaged"):
        house.doorkeeper.look()
    assert house.post("get-run", signed(house.key)).status_code == 200


@pytest.mark.parametrize("late_s", [310.0, -10.0])
def test_a_clock_that_is_off_is_told(house: House, late_s: float) -> None:
    told = house.post("activate-node", signed(house.key, late_s))
    assert (told.status_code, told.json()["code"]) == (400, 2902)
    assert f"off by {abs(late_s):.0f} s" in told.json()["detail"]
    assert house.post("activate-node", signed(house.key, 290.0)).status_code == 200


async def in_pieces(num: int, size: int) -> object:
    for _ in range(num):
        yield b"x" * size


def test_a_body_that_is_too_large_is_refused(house: House) -> None:
    limit = CALLS["get-run"]
    assert house.post("get-run", signed(house.key), b"x" * limit).status_code == 200
    house.superlink.asked.clear()
    assert house.post("get-run", signed(house.key), b"x" * (limit + 1)).status_code == 413
    assert house.post("get-run", signed(house.key), in_pieces(limit // 2**10 + 1, 2**10)).status_code == 413
    assert house.superlink.asked == []


def test_an_answer_is_as_large_as_the_centre_says_over_all_its_objects(house: House) -> None:
    house.answer_bytes = 1000
    push = ("POST", "/v1/fleet/push-object", signed(house.key))
    message = ("POST", "/v1/fleet/push-messages", signed(house.key), b"x" * 5000)  # not an object
    birch = ("POST", "/v1/fleet/push-object", signed(make_site(house.centre, "birch")))
    house.doorkeeper.look()
    found = house.ask(message, (*push, b"x" * 600), (*push, b"x" * 400), (*push, b"x"), (*birch, b"x" * 900), message)
    assert [response.status_code for response in found] == [200, 200, 200, 413, 200, 200]
    assert "max_answer_mib" in found[3].json()["detail"]
    sent = [len(body) for _, path, _, body in house.superlink.asked if path.endswith("push-object")]
    assert sent == [600, 400, 900]
    assert house.ask(message, (*push, b"x" * 1000), message, (*push, b"x" * 1000))[3].status_code == 200  # another one
    assert house.post("push-object", signed(house.key), in_pieces(3, 500)).status_code == 413
    assert read_too_large(house.centre)["alder"].text.endswith("(max_answer_mib in its home.toml).")
    assert read_home(house.centre).max_answer_mib == 0.0


def test_by_default_an_answer_is_as_large_as_the_networks_of_the_runs_let_it_be(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that begins while the gate serves, too; a bound in home.toml can only make it less."""
    for other in (module, answer_size):
        monkeypatch.setattr(other, "ROOM", 1000)
    house.answer_bytes = 0
    message = ("POST", "/v1/fleet/push-messages", signed(house.key), b"x")
    push = ("POST", "/v1/fleet/push-object", signed(house.key))
    assert [one.status_code for one in house.ask(message, (*push, b"x" * 1000), (*push, b"x"))] == [200, 200, 413]
    told = read_too_large(house.centre)["alder"]
    why = "twice the size of the largest network of its runs"
    assert told.text == f"The site's answer is over 0.00 MiB, the centre's limit ({why})."
    assert told.time == pytest.approx(time.time(), abs=60)
    for experiment, num_weights in (("small", 10), ("large", 500)):
        (house.centre / "runs" / experiment).mkdir(parents=True)
        answer_size.allow_answers(house.centre / "runs" / experiment, num_weights)
    assert (house.centre / "runs" / "large" / "answer_bytes").read_text() == "5000"
    found = house.ask(message, (*push, b"x" * 4000), (*push, b"x" * 1000), (*push, b"x"))
    assert [one.status_code for one in found] == [200, 200, 200, 413]
    house.answer_bytes = 3000
    assert house.ask(message, (*push, b"x" * 4000))[1].status_code == 413


def test_a_body_that_stands_still_or_creeps_is_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.2)

    async def creeps() -> object:
        for _ in range(2000):
            yield b"x"
            await asyncio.sleep(0.01)

    told = house.post("push-object", signed(house.key), creeps())
    assert (told.status_code, told.json()["detail"]) == (503, "The body came too slowly: try again.")
    assert house.superlink.asked == []


def test_no_body_is_read_of_a_call_that_is_refused(house: House) -> None:
    read: list[int] = []

    async def counted() -> object:
        for number in range(3):
            read.append(number)
            yield b"x"

    assert house.post("push-object", {}, counted()).status_code == 401
    assert house.post("start-run", signed(house.key), counted()).status_code == 404
    assert read == []


def test_an_object_of_flowers_size_passes_in_pieces(house: House) -> None:
    assert house.post("push-object", signed(house.key), in_pieces(5, 2**20)).content == b"got %d" % (5 * 2**20)


def test_a_superlink_that_is_away_is_waited_for(house: House) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    house.upstream = httpx.MockTransport(away)
    assert house.post("pull-messages", signed(house.key)).status_code == 503  # a node tries again


def test_a_site_hears_whether_a_run_has_ended(house: House) -> None:
    write_ended(house.centre, {"7": "stopped"})
    asked = [
        ("POST", "/v1/multiseg/ended/7", signed(house.key), b""),
        ("POST", "/v1/multiseg/ended/8", signed(house.key), b""),
        ("POST", "/v1/multiseg/ended/7", {}, b""),
        ("GET", "/v1/multiseg/ended/7", signed(house.key), b""),
        ("POST", "/v1/multiseg/ended/7/", signed(house.key), b""),
        ("POST", "/v1/multiseg/ended/../7", signed(house.key), b""),
    ]
    found = house.ask(*asked)
    assert [response.status_code for response in found] == [200, 200, 401, 404, 404, 404]
    assert [response.json() for response in found[:2]] == [{"ended": "stopped"}, {"ended": ""}]


def test_a_site_that_asks_too_often_is_held_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiseg.federation.gate.doorkeeper.BURST", 3.0)
    monkeypatch.setattr("multiseg.federation.gate.doorkeeper.REQUESTS_A_SECOND", 0.0)
    found = house.ask(*(("POST", "/v1/fleet/get-run", signed(house.key), b"") for _ in range(5)))
    assert [response.status_code for response in found] == [200, 200, 200, 503, 503]


def test_bytes_are_counted_by_site_and_remembered(house: House) -> None:
    house.post("push-object", signed(house.key), b"x" * 1000)
    house.post("push-object", {}, b"x" * 5000)
    house.traffic.save()
    sites, refused = read_traffic(house.counts)
    assert {name: (count.requests, count.up, count.down) for name, count in sites.items()} == {"alder": (1, 1000, 8)}
    assert refused == {"unknown key": 1}
    house.traffic = Traffic(house.counts)
    house.post("push-object", signed(house.key), b"x" * 10)
    assert house.traffic.of("alder").up == 1010


def test_the_audit_names_sites_and_calls_and_no_body(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="multiseg.gate")
    house.post("push-messages", signed(house.key), b"patient 17")
    house.post("push-object", signed(house.key), b"patient 17")
    house.ask(*(("POST", "/v1/control/start-run", signed(house.key), b"patient 17") for _ in range(50)))
    lines = [json.loads(record.message) for record in caplog.records if record.name == "multiseg.gate"]
    assert lines[0] == {"what": "call", "site": "alder", "address": "10.1.2.3", "call": "push-messages", "status": 200}
    refused = [line for line in lines if line["what"] == "refused"]
    assert {line["why"] for line in refused} == {"no such call"}
    assert len(refused) == 5  # of fifty: an address cannot fill the disk
    caplog.clear()
    house.doorkeeper = Doorkeeper(house.centre)
    house.ask(("POST", "/v1/fleet/" + "x" * 9000, {}, b""))
    assert len(json.loads(caplog.records[-1].message)["call"]) == 64
    assert "patient" not in caplog.text


def test_the_registry_is_followed_past_what_fails_for_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = iter([OSError("the disk hung"), ValueError("a key that is none"), FederationError("damaged")])
    looked: list[str] = []

    def look() -> None:
        looked.append("at the registry")
        if len(looked) == 5:
            raise KeyboardInterrupt
        for error in fails:
            raise error

    monkeypatch.setattr(module, "KEEP_S", 0.0)
    monkeypatch.setattr(house.doorkeeper, "look", look)
    context = tls(house.centre / "server.crt", house.centre / "server.key")
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(module._keep(read_home(house.centre), context, house.doorkeeper, house.traffic))


def test_a_gate_that_no_longer_follows_the_registry_ends() -> None:
    async def keep() -> None:
        raise RuntimeError("nobody looks any more")

    async def both() -> None:
        stop = asyncio.Event()
        await module.while_kept(keep(), stop.wait(), stop)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="nobody looks"):
        asyncio.run(asyncio.wait_for(both(), 30))


def test_a_gate_that_is_ended_ends_its_keeper() -> None:
    kept: list[str] = []

    async def keep() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            kept.append("ended")

    async def both() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        await module.while_kept(keep(), stop.wait(), stop)  # type: ignore[arg-type]
        await asyncio.sleep(0)

    asyncio.run(both())
    assert kept == ["ended"]
