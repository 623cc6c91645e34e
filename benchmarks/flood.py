"""Strangers at the gate: how much memory they make it hold, and whether a site's calls still pass.

A real gate (TLS, keys) stands before a SuperLink that answers at once. Attackers and the site are processes on this
machine and, but for one flood, at one address, which is the worst case for the site.

Run: python -m benchmarks.flood (all floods), or python -m benchmarks.flood quick idle
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from multiseg.federation.identity import home
from multiseg.federation.identity.enrol import enrol_server, enrol_site
from multiseg.federation.identity.home import Home, read_home

LIMIT_MB = 200.0
AFTER_S = 8.0
"""The gate rests for so long after a flood before its memory is looked at again."""
TOGETHER = 200
"""Attackers that connect at the same time."""
ASK = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: gate\r\nContent-Length: 0\r\n\r\n"

NUMBERS = count()

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(port: int, tls: bool = True) -> Client:
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=trusting() if tls else None), 30)


@cache
def trusting() -> ssl.SSLContext:
    """A stranger asks nobody who the gate is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def says(port: int, data: bytes, times: int = 1, pause_s: float = 0.0, tls: bool = True) -> None:
    """Send something again and again, until the other side ends the connection."""
    _, writer = await connected(port, tls)
    try:
        for _ in range(times):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(pause_s)
            if writer.transport.is_closing():
                break
    finally:
        writer.transport.abort()


async def quick(port: int) -> None:
    """Connect, and go."""
    _, writer = await connected(port)
    writer.close()


async def gone(port: int) -> None:
    """Connect, and go without a word."""
    _, writer = await connected(port)
    writer.transport.abort()


async def refused(port: int) -> None:
    """A call without a key."""
    reader, writer = await connected(port)
    writer.write(ASK)
    await writer.drain()
    await asyncio.wait_for(reader.read(), 30)
    writer.close()


async def idle(port: int) -> None:
    """A connection over which nothing is asked."""
    await says(port, b"", 1, 20)


async def spread(port: int) -> None:
    """A connection over which nothing is asked, each from an address of its own."""
    number = next(NUMBERS)
    source = (f"127.0.{1 + number // 250}.{1 + number % 250}", 0)
    opened = asyncio.open_connection("127.0.0.1", port, ssl=trusting(), local_addr=source)
    _, writer = await asyncio.wait_for(opened, 30)
    await asyncio.sleep(20)
    writer.transport.abort()


async def silent(port: int) -> None:
    """A connection without TLS, over which nothing is said."""
    await says(port, b"", 1, 20, tls=False)


async def reset(port: int) -> None:
    """Connect, and end with RST."""
    with socket.socket() as plain:
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def slow_handshake(port: int) -> None:
    """A handshake of a byte a second."""
    await says(port, b"\x16", 20, 1.0, tls=False)


async def slow_headers(port: int) -> None:
    """Headers of a byte a second."""
    _, writer = await connected(port)
    try:
        for byte in ASK[:20]:
            writer.write(bytes([byte]))
            await asyncio.sleep(1)
    finally:
        writer.transport.abort()


async def huge_headers(port: int) -> None:
    """Headers of 4 MB."""
    await says(port, b"GET / HTTP/1.1\r\n" + b"X-Y: " + b"z" * 4 * 2**20, 1)


async def endless(port: int) -> None:
    """A chunked body without end."""
    _, writer = await connected(port)
    try:
        writer.write(ASK.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        for _ in range(200):
            if writer.transport.is_closing():
                break
            writer.write(b"10000\r\n" + b"z" * 65536 + b"\r\n")
            await writer.drain()
    finally:
        writer.transport.abort()


async def pipelined(port: int) -> None:
    """A thousand calls, sent at once."""
    await says(port, ASK * 1000, 1, 1)


async def http2(port: int) -> None:
    """What HTTP/2 begins with."""
    await says(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 1024, 1, 1)


async def plain(port: int) -> None:
    """HTTP without TLS."""
    await says(port, ASK, 1, 1, tls=False)


@dataclass(frozen=True)
class Flood:
    """So many attackers, so many of them at the same time."""

    attacker: Callable[[int], Awaitable[None]]
    times: int
    together: int = TOGETHER


FLOODS = {
    "quick": Flood(quick, 3000),
    "gone": Flood(gone, 3000),
    "refused": Flood(refused, 5000),
    "idle": Flood(idle, 1100, 1100),
    "spread": Flood(spread, 1100, 1100),
    "silent": Flood(silent, 1100, 1100),
    "reset": Flood(reset, 5000),
    "slow-handshake": Flood(slow_handshake, 600, 600),
    "slow-headers": Flood(slow_headers, 600, 600),
    "huge-headers": Flood(huge_headers, 400),
    "endless-body": Flood(endless, 400),
    "pipelined": Flood(pipelined, 400),
    "http2": Flood(http2, 1000),
    "plain-http": Flood(plain, 1000),
}


def attack(name: str, port: int, share: float) -> None:
    """Run one flood."""
    flood = FLOODS[name]

    async def one(free: asyncio.Semaphore) -> None:
        async with free:
            with suppress(OSError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError):
                await flood.attacker(port)

    async def all_of_them() -> None:
        free = asyncio.Semaphore(flood.together)
        await asyncio.gather(*(one(free) for _ in range(max(1, round(flood.times * share)))))

    asyncio.run(all_of_them())


def signed(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """A call's headers, as Flower's nodes sign them."""
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now = datetime.now(UTC).isoformat()
    signature = key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": now,
        "flwr-signature": b64encode(signature).decode(),
        "content-type": "application/protobuf",
    }


def site(server: Home, key_file: Path, pipe: Connection) -> None:
    """A site: small calls over an open connection, one of 1 MB each second, and each fifth call over a new connection.
    What it saw goes into the pipe when asked for: calls, those that failed, and the longest pause between two that
    passed."""
    key = load_ssh_private_key(key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    trust = ssl.create_default_context(cafile=str(server.at(home.CA)))

    def client() -> httpx.Client:
        return httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=trust, trust_env=False, timeout=60)

    kept, calls, failed, gap, last = client(), 0, 0, 0.0, time.monotonic()
    while True:
        calls += 1
        large = calls % 10 == 0
        asked = ("push-object", b"x" * 2**20) if large else ("pull-messages", b"x")
        try:
            caller = client() if calls % 5 == 0 else kept
            answer = caller.post(f"/v1/fleet/{asked[0]}", content=asked[1], headers=signed(key))
            if caller is not kept:
                caller.close()
            failed += answer.status_code != 200
            if answer.status_code == 200:
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
        except httpx.HTTPError:
            failed += 1
        if pipe.poll(0.1):
            if not pipe.recv():
                return
            pipe.send((calls, failed, max(gap, time.monotonic() - last)))
            calls, failed, gap, last = 0, 0, 0.0, time.monotonic()


async def superlink(scope: Any, receive: Any, send: Any) -> None:
    """What stands behind the gate: it takes a body and says so."""
    while (await receive()).get("more_body"):
        continue
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def behind(server: Home) -> None:
    """Serve the SuperLink's stand-in."""
    uvicorn.run(
        superlink, host="127.0.0.1", port=server.superlink_port, log_level="error", lifespan="off",
        ssl_certfile=str(server.at(home.LINK_CERTIFICATE)), ssl_keyfile=str(server.at(home.LINK_KEY)),
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def standing(folder: Path) -> Iterator[tuple[Home, int, Connection]]:
    """A gate with a SuperLink behind it and a site that calls: its settings, its process, and the site's pipe."""
    ports = {name: free_port() for name in ("port", "superlink_port", "metrics_port")}
    enrol_server(folder / "centre", ["127.0.0.1"], ports)
    kit, _ = enrol_site(folder / "centre", "alder", folder / "kit")
    server = read_home(folder / "centre")
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    link = context.Process(target=behind, args=(server,), daemon=True)
    caller = context.Process(target=site, args=(server, kit / "site.key", there), daemon=True)
    link.start()
    with (folder / "gate.log").open("wb") as log:
        command = [sys.executable, "-m", "multiseg.federation.gate.gate", str(server.folder)]
        gate = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for port in (server.port, server.superlink_port):
            wait_for(port)
        caller.start()
        yield server, gate.pid, here
    finally:
        here.send(False)
        gate.terminate()
        gate.wait()
        link.terminate()
        caller.join(70)


def wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens at {port}")


def rss_mb(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measured(name: str, share: float, server: Home, process: int, pipe: Connection) -> tuple[float, list[str]]:
    """The peak of memory in a flood, and its row."""

    def asked() -> tuple[int, int, float]:
        pipe.send(True)
        found: tuple[int, int, float] = pipe.recv()
        return found

    asked()
    before, began, peak = rss_mb(process), time.monotonic(), 0.0
    attacker = multiprocessing.get_context("forkserver").Process(target=attack, args=(name, server.port, share))
    attacker.start()
    while attacker.is_alive():
        peak = max(peak, rss_mb(process))
        time.sleep(0.05)
    took = time.monotonic() - began
    time.sleep(AFTER_S)
    calls, failed, gap = asked()
    numbers = [f"{before:.0f}", f"{peak:.0f}", f"{rss_mb(process):.0f}", f"{took:.0f}", f"{calls}", f"{failed}"]
    return peak, [f"{name} x{round(FLOODS[name].times * share)}", *numbers, f"{gap:.1f}"]


HEAD = ("flood", "before", "peak", "after", "seconds", "calls", "failed", "gap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("floods", nargs="*", metavar="FLOOD", help=f"of {', '.join(FLOODS)} (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the attackers (default 1)")
    chosen = parser.parse_args()
    if unknown := set(chosen.floods) - set(FLOODS):
        parser.error(f"no flood {', '.join(sorted(unknown))}: choose of {', '.join(FLOODS)}")
    print("Memory of the gate in MB (RSS); the site's calls, those that failed, and its longest pause in s.")
    print(" ".join(f"{word:>8}" if number else f"{word:<22}" for number, word in enumerate(HEAD)))
    peaks = []
    with tempfile.TemporaryDirectory() as folder, standing(Path(folder)) as (server, process, pipe):
        time.sleep(2)
        for name in chosen.floods or FLOODS:
            peak, row = measured(name, chosen.share, server, process, pipe)
            peaks.append(peak)
            print(" ".join(f"{word:>8}" if number else f"{word:<22}" for number, word in enumerate(row)), flush=True)
    if max(peaks) > LIMIT_MB:
        raise SystemExit(f"the gate held {max(peaks):.0f} MB, and {LIMIT_MB:.0f} are the limit.")


if __name__ == "__main__":
    main()
