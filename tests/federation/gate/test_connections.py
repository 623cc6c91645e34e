"""How many connections there may be, and which one gives way."""

import pytest

from multiseg.federation.gate import connections as module
from multiseg.federation.gate.connections import Budgets, Connection, Connections, network


class Line:
    """A connection's other end: it remembers that it was closed."""

    def __init__(self, found: Connections, address: str) -> None:
        self.closed = 0
        entered = found.enter(address, self.close)
        assert entered is not None
        self.connection = entered

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Connections:
    for name, value in {"OF_ADDRESS": 3, "OF_STRANGERS": 5, "OF_SITE": 2, "OF_SITES": 3}.items():
        monkeypatch.setattr(module, name, value)
    return Connections()


def closed(lines: list[Line]) -> list[int]:
    return [number for number, line in enumerate(lines) if line.closed]


def test_the_oldest_stranger_of_an_address_gives_way(few: Connections) -> None:
    lines = [Line(few, "10.0.0.1") for _ in range(5)]
    assert closed(lines) == [0, 1]
    assert few.num_strangers == 3


def test_the_address_with_the_most_gives_way_to_another(few: Connections) -> None:
    greedy = [Line(few, "10.0.0.1") for _ in range(3)]
    others = [Line(few, f"10.0.1.{number}") for number in range(4)]
    assert closed(greedy) == [0, 1]
    assert closed(others) == []
    assert few.num_strangers == 5


def test_what_strangers_open_never_closes_a_connection_of_a_site_at_the_same_address(few: Connections) -> None:
    mine = [Line(few, "10.0.0.1"), Line(few, "10.0.0.1")]
    for line in mine:
        few.identify(line.connection, "alder")
    strangers = [Line(few, "10.0.0.1") for _ in range(50)]
    assert closed(mine) == []
    assert closed(strangers) == list(range(47))
    assert (few.num_strangers, few.num_sites) == (3, 2)


def test_two_sites_behind_one_address_do_not_count_against_each_other(few: Connections) -> None:
    alder, birch = [Line(few, "10.0.0.1") for _ in range(2)], Line(few, "10.0.0.1")
    for line in alder:
        few.identify(line.connection, "alder")
    few.identify(birch.connection, "birch")
    assert closed([*alder, birch]) == []
    another = Line(few, "10.0.0.1")
    few.identify(another.connection, "alder")
    assert closed(alder) == [0]
    assert birch.closed == 0


def test_a_connection_that_left_counts_no_more(few: Connections) -> None:
    lines = [Line(few, "10.0.0.1") for _ in range(3)]
    few.identify(lines[0].connection, "alder")
    for line in (*lines, *lines):
        few.leave(line.connection)
    assert (few.num_strangers, few.num_sites) == (0, 0)
    assert closed([Line(few, "10.0.0.1") for _ in range(3)]) == []


def test_an_address_opens_so_many_a_second_and_that_of_a_site_more(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    for name, value in {"NEW_A_SECOND": 2.0, "NEW_BURST": 4.0, "SITES_TIMES": 10.0}.items():
        monkeypatch.setattr(module, name, value)
    found = Connections()

    def entered(address: str, times: int) -> int:
        return sum(found.enter(address, lambda: None) is not None for _ in range(times))

    assert entered("10.0.0.1", 100) == 4
    assert entered("10.0.0.2", 100) == 4
    clock[0] += 1
    assert entered("10.0.0.1", 100) == 2
    clock[0] += 1
    site = Line(found, "10.0.0.1")
    found.identify(site.connection, "alder")
    clock[0] += 60
    assert entered("10.0.0.1", 100) == 40
    assert entered("10.0.0.2", 100) == 4


def test_a_stranger_has_15_s_and_a_site_rests_for_a_minute(clock: list[float]) -> None:
    found = Connections()
    stranger, site, busy = (Line(found, "10.0.0.1") for _ in range(3))
    with found.answering(site.connection, "alder"):
        clock[0] += 10
    with found.answering(busy.connection, "alder"):
        found.sweep()
        assert closed([stranger, site, busy]) == []
        clock[0] += 6
        found.sweep()
        assert closed([stranger, site, busy]) == [0]
        clock[0] += 55
        found.sweep()
        assert closed([stranger, site, busy]) == [0, 1]  # 61 s after its call; a call in hand is no rest
    found.sweep()
    assert busy.closed == 0
    assert (found.num_strangers, found.num_sites) == (0, 1)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_addresses_are_counted_by_what_one_user_has(address: str, counted: str) -> None:
    assert network(address) == counted


def test_of_addresses_only_the_newest_are_remembered() -> None:
    budgets = Budgets(most=100)
    for number in range(1000):
        assert budgets.spend(f"{number}", 0.0, 1.0)
    assert len(budgets._left) == 100
    assert not budgets.spend("999", 0.0, 1.0)
    assert budgets.spend("0", 0.0, 1.0)  # forgotten


def test_a_connection_is_itself_alone() -> None:
    assert Connection("10.0.0.1") != Connection("10.0.0.1")
