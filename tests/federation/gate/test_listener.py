"""The public port under small floods: what is held, and that a site's calls pass all the while."""

import asyncio
import gc
import socket
import ssl
from asyncio import sslproto
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from made_centre import make_centre, make_site, signed
from servers import free_port

from multiseg.federation.gate import connections as limits
from multiseg.federation.gate import listener as module
from multiseg.federation.gate.connections import Connections
from multiseg.federation.gate.doorkeeper import Doorkeeper
from multiseg.federation.gate.gate import Gate, Receive, Scope, Send
from multiseg.federation.gate.listener import GateProtocol, Listener, prepare, tls
from multiseg.federation.gate.traffic import Traffic

pytestmark = [
    # A hundred TLS connections end with their event loop, and one that asyncio has not marked as closed by then warns
    # when it is collected, in whatever test runs at that moment. What the gate itself holds is counted below.
    pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ASK = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: gate\r\nContent-Length: 0\r\n\r\n"
HANDSHAKE = b"\x16\x03\x01"
CALLS = 10


class House:
    """A gate at a real port, a SuperLink in memory behind it, and a site, alder."""

    def __init__(self, folder: Path) -> None:
        self.centre = make_centre(folder)
        self.key: ec.EllipticCurvePrivateKey = make_site(self.centre, "alder")
        self.port = free_port()
        self.connections = Connections()
        self.bodies: list[int] = []

    async def superlink(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        self.bodies.append(size)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    def under(self, attack: Callable[[int], Awaitable[bytes]], times: int, num_calls: int = CALLS) -> list[bytes]:
        """What attackers got, while alder called (ten times), each fifth time over a new connection."""

        async def all_of_it() -> list[bytes]:
            stop = asyncio.Event()
            behind = httpx.AsyncClient(transport=httpx.ASGITransport(self.superlink), base_url="https://superlink")
            traffic = Traffic(self.centre / "gate.json")
            gate = Gate(behind, Doorkeeper(self.centre), traffic, self.connections, 2**29)
            context = tls(self.centre / "server.crt", self.centre / "server.key")
            serving = asyncio.create_task(Listener(gate, context, self.connections).serve("127.0.0.1", self.port, stop))
            await asyncio.sleep(0)
            attackers = [asyncio.create_task(attack(self.port)) for _ in range(times)]
            assert await self.calls(num_calls) == [200] * num_calls
            got = await asyncio.gather(*attackers)
            await until(lambda: self.connections.num_strangers + self.connections.num_sites == 0)
            await asyncio.sleep(0.1)  # what was ended is closed
            stop.set()
            await serving
            await behind.aclose()
            return got

        return asyncio.run(asyncio.wait_for(all_of_it(), 60))

    async def calls(self, num: int) -> list[int]:
        trust = ssl.create_default_context(cafile=str(self.centre / "ca.crt"))
        found = []

        def client() -> httpx.AsyncClient:
            return httpx.AsyncClient(
                base_url=f"https://127.0.0.1:{self.port}", verify=trust, trust_env=False, timeout=30
            )

        async with client() as kept:
            for number in range(num):
                if number % 5:
                    answer = await kept.post("/v1/fleet/get-run", headers=signed(self.key))
                else:
                    async with client() as new:
                        answer = await new.post("/v1/fleet/push-object", headers=signed(self.key), content=b"x" * 99999)
                found.append(answer.status_code)
                await asyncio.sleep(0.05)
        return found


async def until(met: Callable[[], bool]) -> None:
    while not met():
        await asyncio.sleep(0.05)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    for name, value in {"OF_ADDRESS": 50, "OF_STRANGERS": 60, "STRANGER_S": 1.0}.items():
        monkeypatch.setattr(limits, name, value)
    monkeypatch.setattr(module, "SWEEP_S", 0.2)
    monkeypatch.setattr(module, "ACCEPTED_AT_ONCE", 2)  # of 256 it is 8
    return House(tmp_path)


@pytest.fixture(scope="module")
def stranger() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


Said = Callable[[asyncio.StreamWriter], Awaitable[None]]


def attack(stranger: ssl.SSLContext | None, say: Said) -> Callable[[int], Awaitable[bytes]]:
    """One who connects, says something, and reads to the end."""

    async def attacked(port: int) -> bytes:
        got = b""
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=stranger)
            try:
                await say(writer)
                got = await reader.read()
            finally:
                writer.transport.abort()
        return got

    return attacked


async def nothing(writer: asyncio.StreamWriter) -> None:
    pass


def test_idle_strangers_give_way_and_a_site_calls_all_the_while(house: House, stranger: ssl.SSLContext) -> None:
    assert house.under(attack(stranger, nothing), 120) == [b""] * 120
    assert len(house.bodies) == CALLS
    gc.collect()
    assert [one for one in gc.get_objects() if type(one) is GateProtocol and one.transport] == []


@pytest.mark.slow
def test_connections_that_say_nothing_or_no_tls_are_ended(house: House) -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(HANDSHAKE)

    assert house.under(attack(None, half), 100) == [b""] * 100


@pytest.mark.slow
def test_strangers_calls_are_answered_once_a_connection(house: House, stranger: ssl.SSLContext) -> None:
    async def many(writer: asyncio.StreamWriter) -> None:
        writer.write(ASK * 20)

    got = house.under(attack(stranger, many), 30)
    assert {found.split(b"\r\n")[0] for found in got if found} == {b"HTTP/1.1 401 Unauthorized"}
    assert max(found.count(b"HTTP/1.1") for found in got) == 1


@pytest.mark.slow
def test_headers_that_creep_do_not_keep_a_connection(house: House, stranger: ssl.SSLContext) -> None:
    async def creep(writer: asyncio.StreamWriter) -> None:
        for byte in ASK[:-2] * 10:
            if writer.transport.is_closing():
                return
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1)

    assert house.under(attack(stranger, creep), 20) == [b""] * 20


NO_CALLS = {
    b"GET / HTTP/1.1\r\nHost: gate\r\nX: " + b"z" * 10**6: b"400",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": b"404",
    b"\0" * 1000: b"400",
    ASK.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"10000\r\n" + b"z" * 65536: b"401",
    ASK.replace(b"Content-Length: 0", b"Content-Length: 99999999999"): b"401",
}


@pytest.mark.slow
def test_what_is_no_call_is_refused_and_its_body_is_not_waited_for(house: House, stranger: ssl.SSLContext) -> None:
    left = list(NO_CALLS) * 3
    told: dict[bytes, set[bytes]] = {said: set() for said in NO_CALLS}

    async def one(port: int) -> bytes:
        said = left.pop()

        async def say(writer: asyncio.StreamWriter) -> None:
            writer.write(said)

        got = await attack(stranger, say)(port)
        told[said].add(got.split()[1] if got else b"")
        return got

    house.under(one, len(left))
    assert left == []
    for said, codes in told.items():  # nothing, where the reset overtook the answer
        assert codes <= {NO_CALLS[said], b""}, said[:40]
    assert told[ASK.replace(b"Content-Length: 0", b"Content-Length: 99999999999")] == {b"401"}


@pytest.mark.slow
def test_a_refused_connection_is_reset_since_a_node_ends_at_half_a_handshake(
    house: House, stranger: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NEW_BURST", 30.0)
    monkeypatch.setattr(limits, "NEW_A_SECOND", 0.0)
    errors: list[str] = []

    async def connect(port: int) -> bytes:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=stranger)
            writer.transport.abort()
        except OSError as error:
            errors.append(type(error).__name__)
        return b""

    house.under(connect, 100, num_calls=0)
    assert len(errors) >= 60
    assert set(errors) <= {"ConnectionResetError", "BrokenPipeError"}


def test_a_process_that_is_a_gate_holds_little_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    monkeypatch.setattr(module.resource, "setrlimit", lambda *what: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    prepare()

    async def held() -> int:
        protocol = sslproto.SSLProtocol(
            asyncio.get_running_loop(), asyncio.Protocol(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), None, True
        )
        return len(protocol._ssl_buffer)

    assert asyncio.run(held()) == 32 * 2**10


def test_tls_has_no_tickets_and_no_renegotiation(tmp_path: Path) -> None:
    centre = make_centre(tmp_path)
    context = tls(centre / "server.crt", centre / "server.key")
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.slow
def test_without_descriptors_the_port_waits_and_goes_on(house: House, stranger: ssl.SSLContext) -> None:
    real, failures = socket.socket.accept, [OSError(24, "Too many open files")] * 3

    def accept(door: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return real(door)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WAIT_S", 0.05)
        patch.setattr(socket.socket, "accept", accept)
        house.under(attack(stranger, nothing), 5)
    assert failures == []
    assert len(house.bodies) == CALLS


def test_a_port_that_no_longer_closes_what_rests_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep() -> None:
        raise RuntimeError("nobody sweeps")

    monkeypatch.setattr(house.connections, "sweep", sweep)
    context = tls(house.centre / "server.crt", house.centre / "server.key")

    async def served() -> None:
        listener = Listener(house.superlink, context, house.connections)
        await listener.serve("127.0.0.1", house.port, asyncio.Event())

    with pytest.raises(RuntimeError, match="nobody sweeps"):
        asyncio.run(asyncio.wait_for(served(), 30))
