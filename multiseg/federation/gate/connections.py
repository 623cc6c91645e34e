"""Limits the connections of strangers' addresses and of sites, and chooses which one to close.

A connection belongs to its address until a site signs a call over it, and to that site from then on. So a stranger's
connections never count against a site, not even from the same address.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

OF_ADDRESS, OF_STRANGERS = 256, 512
"""Connections at a time, of one address and of all, over which no site has called yet. One too many closes the oldest
of the address with the most: a site calls as soon as it is connected, so it is never the oldest for long."""
OF_SITE, OF_SITES = 32, 1024
"""Connections at a time, of one site and of all. Flower's node opens about ten."""
NEW_A_SECOND, NEW_BURST = 100.0, 1000.0
"""New connections of one address."""
SITES_TIMES = 10.0
"""An address from which a site has called may open this many times more: hospitals may share it with strangers."""
STRANGER_S, QUIET_S = 15.0, 60.0
"""For a stranger's handshake and the headers of a call; for a site's idle connection."""
ADDRESSES = 10_000
"""The newest that are remembered."""


@dataclass(eq=False)
class Connection:
    """One connection.

    Attributes:
        address: its owner until a site has called: an IPv4 address, or the first 64 bits of an IPv6 address.
        end: closes it at once.
        site: its owner since a call was signed; "" before.
        since: when it was accepted or last answered a call (monotonic seconds).
        answering: whether a call is being answered.
    """

    address: str = ""
    end: Callable[[], None] = lambda: None
    site: str = ""
    since: float = field(default_factory=lambda: time.monotonic())
    answering: bool = False


class Budgets:
    """Token buckets by owner: each fills with time."""

    def __init__(self, most: int = ADDRESSES) -> None:
        self._most = most
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, owner: str, a_second: float, burst: float) -> bool:
        """Take one token; False if none is left."""
        now = time.monotonic()
        before, left = self._left.pop(owner, (now, burst))
        left = min(burst, left + (now - before) * a_second)
        self._left[owner] = (now, max(left - 1, 0.0))
        while len(self._left) > self._most:
            self._left.pop(next(iter(self._left)))
        return left >= 1


class _Group:
    """Connections by owner, the oldest first."""

    def __init__(self, of_one: int, of_all: int) -> None:
        self._of_one, self._of_all = of_one, of_all
        self._by: dict[str, dict[Connection, None]] = {}
        self.num = 0

    def add(self, owner: str, connection: Connection) -> Connection | None:
        """Add a connection; if there are too many, return the one to close."""
        connections = self._by.setdefault(owner, {})
        connections[connection] = None
        self.num += 1
        if len(connections) <= self._of_one and self.num <= self._of_all:
            return None
        largest = connections if len(connections) > self._of_one else max(self._by.values(), key=len)
        return next(iter(largest))

    def remove(self, owner: str, connection: Connection) -> None:
        """Remove a connection, if it is in the group."""
        connections = self._by.get(owner, {})
        if connection in connections:
            del connections[connection]
            self.num -= 1
        if not connections:
            self._by.pop(owner, None)

    def resting(self, before: float) -> list[Connection]:
        """The connections that have been idle since a time."""
        every = (connection for connections in self._by.values() for connection in connections)
        return [connection for connection in every if connection.since < before and not connection.answering]


class Connections:
    """All open connections."""

    def __init__(self) -> None:
        self._strangers, self._sites = _Group(OF_ADDRESS, OF_STRANGERS), _Group(OF_SITE, OF_SITES)
        self._new = Budgets()
        self._homes: dict[str, None] = {}
        self.ended = 0

    @property
    def num_strangers(self) -> int:
        """Connections over which no site has called yet."""
        return self._strangers.num

    @property
    def num_sites(self) -> int:
        """Connections of sites."""
        return self._sites.num

    def enter(self, address: str, end: Callable[[], None]) -> Connection | None:
        """A new connection; None if its address opens too many."""
        owner = network(address)
        times = SITES_TIMES if owner in self._homes else 1.0
        if not self._new.spend(owner, NEW_A_SECOND * times, NEW_BURST * times):
            return None
        connection = Connection(owner, end)
        self._give_way(self._strangers.add(owner, connection))
        return connection

    def identify(self, connection: Connection, site: str) -> None:
        """Assign a connection to the site that has called over it."""
        if connection.site == site:
            return
        self._remove(connection)
        connection.site = site
        self._give_way(self._sites.add(site, connection))
        self._homes.pop(connection.address, None)
        self._homes[connection.address] = None
        while len(self._homes) > ADDRESSES:
            self._homes.pop(next(iter(self._homes)))

    @contextmanager
    def answering(self, connection: Connection, site: str) -> Iterator[None]:
        """Mark a connection as busy with a site's call in this block."""
        self.identify(connection, site)
        connection.answering = True
        try:
            yield
        finally:
            connection.answering, connection.since = False, time.monotonic()

    def leave(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self._remove(connection)
        self.ended += 1

    def sweep(self) -> None:
        """Close connections that have been idle for too long."""
        now = time.monotonic()
        for connection in (*self._strangers.resting(now - STRANGER_S), *self._sites.resting(now - QUIET_S)):
            self._give_way(connection)

    def _give_way(self, connection: Connection | None) -> None:
        if connection is not None:
            self._remove(connection)
            connection.end()

    def _remove(self, connection: Connection) -> None:
        self._strangers.remove(connection.address, connection)
        self._sites.remove(connection.site, connection)


def network(address: str) -> str:
    """The key that limits count by: an IPv4 address, or the 64 bits of an IPv6 network, which one user controls."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped) if parsed.ipv4_mapped else f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)
