"""Who is connected: how many connections a stranger's address and a site may have, and which one gives way.

A connection belongs to its address until a call over it was signed by a site, and to that site from then on. So what a
stranger opens never counts against a site, not even behind the same address.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

OF_ADDRESS, OF_STRANGERS = 256, 512
"""Connections at once, of one address and of all, over which no site has called yet. One too many closes the oldest of
the address that has the most: a site calls as soon as it is connected, and so is never the oldest for long."""
OF_SITE, OF_SITES = 32, 1024
"""Connections at once, of one site and of all. Flower's node opens about ten."""
NEW_A_SECOND, NEW_BURST = 100.0, 1000.0
"""New connections of one address."""
SITES_TIMES = 10.0
"""An address from which a site has called may open so many times more: hospitals may share it with strangers."""
STRANGER_S, QUIET_S = 15.0, 60.0
"""A stranger has so long for the handshake and the headers of a call; a site's connection may rest for so long."""
ADDRESSES = 10_000
"""Remembered, the newest."""


@dataclass(eq=False)
class Connection:
    """One connection.

    Attributes:
        address: whose it is until a site has called: an IPv4 address, or the first 64 bits of an IPv6 address.
        end: closes it at once.
        site: whose it is since a call was signed; "" before.
        since: when it was accepted or last answered a call (monotonic seconds).
        answering: whether a call is being answered.
    """

    address: str = ""
    end: Callable[[], None] = lambda: None
    site: str = ""
    since: float = field(default_factory=lambda: time.monotonic())
    answering: bool = False


class Budgets:
    """What each of many may spend; it fills with time."""

    def __init__(self, most: int = ADDRESSES) -> None:
        self._most = most
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, whose: str, a_second: float, burst: float) -> bool:
        """Take one; False where nothing is left."""
        now = time.monotonic()
        before, left = self._left.pop(whose, (now, burst))
        left = min(burst, left + (now - before) * a_second)
        self._left[whose] = (now, max(left - 1, 0.0))
        while len(self._left) > self._most:
            self._left.pop(next(iter(self._left)))
        return left >= 1


class _Group:
    """Connections by whose they are, the oldest first."""

    def __init__(self, of_one: int, of_all: int) -> None:
        self._of_one, self._of_all = of_one, of_all
        self._by: dict[str, dict[Connection, None]] = {}
        self.num = 0

    def add(self, whose: str, connection: Connection) -> Connection | None:
        """Take one in; the one that has to give way for it, if there are too many."""
        own = self._by.setdefault(whose, {})
        own[connection] = None
        self.num += 1
        if len(own) <= self._of_one and self.num <= self._of_all:
            return None
        most = own if len(own) > self._of_one else max(self._by.values(), key=len)
        return next(iter(most))

    def remove(self, whose: str, connection: Connection) -> None:
        """Let one go, if it is there."""
        own = self._by.get(whose, {})
        if connection in own:
            del own[connection]
            self.num -= 1
        if not own:
            self._by.pop(whose, None)

    def resting(self, before: float) -> list[Connection]:
        """Those that have answered nothing since a time, and are answering nothing."""
        every = (connection for own in self._by.values() for connection in own)
        return [connection for connection in every if connection.since < before and not connection.answering]


class Connections:
    """All that are open."""

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
        """A new connection; None where its address opens too many."""
        whose = network(address)
        times = SITES_TIMES if whose in self._homes else 1.0
        if not self._new.spend(whose, NEW_A_SECOND * times, NEW_BURST * times):
            return None
        connection = Connection(whose, end)
        self._give_way(self._strangers.add(whose, connection))
        return connection

    def identify(self, connection: Connection, site: str) -> None:
        """A site has called over it."""
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
        """While a site's call over it is answered."""
        self.identify(connection, site)
        connection.answering = True
        try:
            yield
        finally:
            connection.answering, connection.since = False, time.monotonic()

    def leave(self, connection: Connection) -> None:
        """It is closed."""
        self._remove(connection)
        self.ended += 1

    def sweep(self) -> None:
        """Close what has rested too long."""
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
    """What limits are counted by: an IPv4 address, or the first 64 bits of an IPv6 address: one user has the others."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        return str(found.ipv4_mapped) if found.ipv4_mapped else f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return str(found)
