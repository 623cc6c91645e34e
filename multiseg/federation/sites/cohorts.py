"""Chooses the cases of each number that leaves a site, so that no two numbers reveal a case by their difference.

A mean over ten cases and another over nine of them reveal the tenth. So a site records the sets of cases that it has
reported numbers over, as the groups that these sets cut each other into, and computes the next number only over cases
such that every group, old and new, has at least `least` cases. Adding or subtracting numbers then only gives sums over
groups. It does not matter how cases are selected: labels, sequences, databases and numbers of cases all choose among
the same groups.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from multiseg.errors import CheckpointError, ResourceError
from multiseg.files import write_atomically
from multiseg.locks import locked

FILE, LOCK = "cohorts.json", ".cohorts.lock"
KINDS = ("evaluated", "told")

Groups = Sequence[frozenset[str]]
"""Disjoint sets of members that have always been used together."""


def admitted(wanted: Collection[str], groups: Groups, least: int) -> frozenset[str]:
    """The wanted members that a number may be computed over; none if they are too few.

    If fewer than `least` of a group are missing, others are left out with them until `least` are.
    """
    wanted, kept = frozenset(wanted), set[str]()
    for group in groups:
        inside = group & wanted
        missing = len(group - inside)
        if inside and 0 < missing < least:
            inside -= frozenset(in_order(inside)[: least - missing])
        if len(inside) >= least:
            kept |= inside
    fresh = wanted.difference(*groups)
    return frozenset(kept | fresh if len(fresh) >= least else kept)


def cut(groups: Groups, used: frozenset[str]) -> tuple[frozenset[str], ...]:
    """The groups after a number was computed over these members."""
    parts = [part for group in groups for part in (group & used, group - used)]
    return tuple(part for part in (*parts, used.difference(*groups)) if part)


def chosen(members: Collection[str], groups: Groups, least: int, num: int | None) -> tuple[str, ...]:
    """About `num` of the members, or all, in a fixed pseudorandom order, as whole groups.

    At least `least` members. A group is split only if both parts have `least` members; new members follow the same
    rule.
    """
    safe = admitted(members, groups, least)
    parts = [in_order(part) for part in (*(group & safe for group in groups), safe.difference(*groups)) if part]
    num = len(safe) if num is None else num
    found: list[str] = []
    for part in parts:
        if len(found) >= num:
            break
        needed = max(least, num - len(found))
        found += part if len(part) - needed < least else part[:needed]
    return tuple(found)


def in_order(members: Iterable[str]) -> list[str]:
    """Sort by a hash of the names, an order without meaning."""
    return sorted(members, key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest())


class Cohorts:
    """The cases that a site has evaluated on and reported numbers over, by database, over all experiments.

    Raises:
        CheckpointError: its file is damaged.
        ResourceError: it cannot be written, and nothing is reported without it.
    """

    def __init__(self, state: Path, least: int) -> None:
        self._state, self._least = state, least

    def choose(self, database: str, cases: Collection[str], num: int | None) -> tuple[str, ...]:
        """The cases to evaluate on, about `num` of these or all: see `chosen`."""
        return self._record("evaluated", database, lambda groups: chosen(cases, groups, self._least, num))

    def admit(self, database: str, wanted: Collection[str]) -> frozenset[str]:
        """The cases that a number may be computed over: see `admitted`."""
        return frozenset(self._record("told", database, lambda groups: admitted(wanted, groups, self._least)))

    def _record(self, what: str, database: str, choose: Callable[[Groups], Collection[str]]) -> tuple[str, ...]:
        """Choose members by the groups so far, and save the new groups before the members are used."""
        with self._locked():
            everything = self._read()
            groups = everything[what].get(database, ())
            members = tuple(choose(groups))
            after = cut(groups, frozenset(members))
            if set(after) != set(groups):
                self._write({**everything, what: {**everything[what], database: after}})
        return members

    def _read(self) -> dict[str, dict[str, Groups]]:
        file = self._state / FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return {
                what: {name: tuple(map(frozenset, groups)) for name, groups in content[what].items()} for what in KINDS
            }
        except FileNotFoundError:
            return {what: {} for what in KINDS}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file}, which records the cases that this site has reported numbers over, is damaged: {error!r}. "
                "Restore a copy of it."
            ) from error

    def _write(self, everything: Mapping[str, Mapping[str, Groups]]) -> None:
        listed = {
            what: {name: [in_order(group) for group in groups] for name, groups in databases.items()}
            for what, databases in everything.items()
        }
        write_atomically(self._state / FILE, json.dumps(listed, indent=1).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            file = (self._state / LOCK).open("a")
        except OSError as error:
            raise ResourceError(f"{self._state} cannot be written: {error.strerror}.") from error
        with file, locked(file, self._state / LOCK):
            yield
