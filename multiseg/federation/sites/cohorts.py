"""Which cases a site tells a number over, so that no two numbers tell one case apart by their difference.

A mean over ten cases and another over nine of them tell the tenth. So a site remembers over which cases it has told
something, as the groups that these sets cut each other into, and tells the next number only over such cases that every
group, the new ones too, is of `least` cases or more. Whatever is added or subtracted then is a sum over groups. Which
cases are asked for does not matter: labels, sequences, databases and numbers of cases all choose among the same groups.
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
"""Disjoint sets of members, each of which only ever counted together."""


def admitted(wanted: Collection[str], groups: Groups, least: int) -> frozenset[str]:
    """Those of the wanted members that a number may be told over; none where that is too few.

    Where a few of a group are missing, as many others stay out with them that those are `least`.
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


def cut(groups: Groups, told: frozenset[str]) -> tuple[frozenset[str], ...]:
    """The groups after a number was told over these members."""
    parts = [part for group in groups for part in (group & told, group - told)]
    return tuple(part for part in (*parts, told.difference(*groups)) if part)


def chosen(members: Collection[str], groups: Groups, least: int, num: int | None) -> tuple[str, ...]:
    """About `num` of the members, or all, in an order that nobody chooses: whole groups, never one more or less.

    At least `least`, a part of a group only where both parts are as many, and then new members by the same rule.
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
    """An order that follows from the names alone and says nothing."""
    return sorted(members, key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest())


class Cohorts:
    """What a site has evaluated on and told numbers over, in its own folder, by database, over all experiments.

    Raises:
        CheckpointError: its file is damaged.
        ResourceError: it cannot be written, and without it nothing is told.
    """

    def __init__(self, state: Path, least: int) -> None:
        self._state, self._least = state, least

    def choose(self, database: str, cases: Collection[str], num: int | None) -> tuple[str, ...]:
        """The cases to evaluate on, about `num` of these or all: see `chosen`."""
        return self._told("evaluated", database, lambda groups: chosen(cases, groups, self._least, num))

    def admit(self, database: str, wanted: Collection[str]) -> frozenset[str]:
        """Those that a number may be told over: see `admitted`."""
        return frozenset(self._told("told", database, lambda groups: admitted(wanted, groups, self._least)))

    def _told(self, what: str, database: str, of: Callable[[Groups], Collection[str]]) -> tuple[str, ...]:
        """What may be told by the groups so far, written down before it is."""
        with self._alone():
            everything = self._read()
            groups = everything[what].get(database, ())
            found = tuple(of(groups))
            after = cut(groups, frozenset(found))
            if set(after) != set(groups):
                self._write({**everything, what: {**everything[what], database: after}})
        return found

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
                f"{file}, which says over which cases this site has told numbers, is damaged: {error!r}. Put back a "
                "copy of it."
            ) from error

    def _write(self, everything: Mapping[str, Mapping[str, Groups]]) -> None:
        listed = {
            what: {name: [in_order(group) for group in groups] for name, groups in some.items()}
            for what, some in everything.items()
        }
        write_atomically(self._state / FILE, json.dumps(listed, indent=1).encode())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            file = (self._state / LOCK).open("a")
        except OSError as error:
            raise ResourceError(f"{self._state} cannot be written: {error.strerror}.") from error
        with file, locked(file, self._state / LOCK):
            yield
