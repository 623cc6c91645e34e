"""The gate's port: TLS with small buffers, and idle connections are closed.

asyncio's own server has no limits before the TLS handshake, and gives each connection 256 KiB. Here each connection is
counted when it is accepted. Surplus ones are reset (RST): Flower's node retries after a reset, but ends for good if TLS
is closed in the middle of a handshake.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import ssl
import struct
from asyncio import sslproto
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from multiseg.allocator import return_memory
from multiseg.federation.gate.connections import QUIET_S, STRANGER_S, Connection, Connections

BUFFER = 32 * 2**10
"""Bytes that asyncio reads from a TLS connection at once, and buffers for each."""
UNSENT = 64 * 2**10
"""Bytes for a client that reads slowly."""
HEADERS = 16 * 2**10
"""Bytes of a request before its body."""
SHUTDOWN_S, GRACE_S = 2.0, 5.0
"""For a client to answer the end of TLS; for current calls when the gate ends."""
ACCEPTED_AT_ONCE, BACKLOG = 8, 1024
"""Few at once, so that a connection completes its handshake before it becomes the oldest of its address."""
SWEEP_S, WAIT_S = 1.0, 0.5
RESET = struct.pack("ii", 1, 0)

log = logging.getLogger("multiseg.gate")


class GateProtocol(H11Protocol):
    """HTTP/1.1 over one counted connection."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, connections: Connections, connection: Connection
    ) -> None:
        super().__init__(config, state, {"connection": connection})
        self._connections, self._connection = connections, connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The TLS handshake is done."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(UNSENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        super().connection_lost(exc)
        self._connections.leave(self._connection)


class Listener:
    """A public port for an ASGI application; the scope's state holds the call's `Connection`."""

    def __init__(self, app: Any, context: ssl.SSLContext, connections: Connections) -> None:
        self._context, self._connections = context, connections
        self._state = ServerState()
        self._welcomes: set[asyncio.Task[None]] = set()
        self._config = uvicorn.Config(
            app,
            http=H11Protocol,
            interface="asgi3",
            lifespan="off",
            ws="none",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            log_level="error",
            timeout_keep_alive=int(QUIET_S),
            h11_max_incomplete_event_size=HEADERS,
        )
        self._config.load()

    async def serve(self, host: str, port: int, stop: asyncio.Event) -> None:
        """Accept connections until `stop` is set; current calls are then answered first.

        Raises:
            OSError: the port cannot be listened on.
            Exception: what ended the sweeping, without which connections would pile up.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family, backlog=BACKLOG) as door:
            door.setblocking(False)
            self._open(door)
            try:
                await while_kept(self._sweep(), stop.wait(), stop)
            finally:
                asyncio.get_running_loop().remove_reader(door)
                await self._finish()

    def _open(self, door: socket.socket) -> None:
        if door.fileno() >= 0:
            asyncio.get_running_loop().add_reader(door, self._accept, door)

    def _accept(self, door: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, address = door.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors or memory left: open connections end within seconds
                log.error("connections wait: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(door)
                loop.call_later(WAIT_S, self._open, door)
                return
            self._enter(client, address[0])

    def _enter(self, client: socket.socket, address: str) -> None:
        client.setblocking(False)
        with suppress(OSError):  # it may be closed already
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = _End(client)
        connection = self._connections.enter(address, end)
        if connection is None:
            end()
            return
        end.task = asyncio.ensure_future(self._welcome(client, connection, end))
        self._welcomes.add(end.task)
        end.task.add_done_callback(self._welcomes.discard)

    async def _welcome(self, client: socket.socket, connection: Connection, end: _End) -> None:
        """Do the TLS handshake, and start HTTP."""
        made = partial(GateProtocol, self._config, self._state, self._connections, connection)
        try:
            end.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                made, client, ssl=self._context, ssl_handshake_timeout=STRANGER_S, ssl_shutdown_timeout=SHUTDOWN_S
            )
        except OSError:  # of TLS, too
            self._connections.leave(connection)
        except asyncio.CancelledError:
            self._connections.leave(connection)
            raise

    async def _sweep(self) -> None:
        """Close idle connections, and free the memory of closed ones."""
        num_ended = self._connections.ended
        while True:
            await asyncio.sleep(SWEEP_S)
            self._connections.sweep()
            if self._connections.ended != num_ended:
                num_ended = self._connections.ended
                gc.collect()
                return_memory()

    async def _finish(self) -> None:
        for task in self._welcomes:
            task.cancel()
        for protocol in list(self._state.connections):
            protocol.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=GRACE_S)
        for task in self._state.tasks:
            task.cancel()
        for protocol in list(self._state.connections):
            protocol.transport.abort()


async def while_kept(keeping: Awaitable[None], serving: Awaitable[object], stop: asyncio.Event) -> None:
    """Serve as long as `keeping` runs, and raise its error: without it revocations would be missed, for example."""
    keeper = asyncio.ensure_future(keeping)
    keeper.add_done_callback(lambda _: stop.set())
    try:
        await serving
        if keeper.done():
            keeper.result()
    finally:
        keeper.cancel()


class _End:
    """Closes one connection at once, whether its handshake is done or not."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None

    def __call__(self) -> None:
        with suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if self.transport is not None:
            self.transport.abort()
        elif self.task is not None:
            self.task.cancel()
        else:
            self._client.close()


def tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS of a server, without tickets and renegotiation, which cost a stranger little and the server more."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    return context


def ended_by_signals() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def prepare() -> None:
    """Set small buffers, the maximum of descriptors, and exempt current objects from garbage collection. Only for a
    process that does nothing but serve the gate."""
    sslproto.SSLProtocol.max_size = BUFFER
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    gc.freeze()
