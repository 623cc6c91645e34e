"""Folds of a store for cross-validation: every person is tested in exactly one of them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from multiseg.errors import UsageError
from multiseg.store.reader import Case, Store

VALIDATION_SHARE = 0.125
"""Of the people outside the fold: 10% of all people with five folds, as in the splits of `ingest`."""
Person: TypeAlias = tuple[Case, ...]


@dataclass(frozen=True)
class Fold:
    """One of `number` folds, counted from 0. Folds of one store, number and seed have no person in common.

    Raises:
        UsageError: there is no such fold.
    """

    index: int
    number: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.number < 2 or not 0 <= self.index < self.number:
            raise UsageError(
                f"there is no fold {self.index}/{self.number}: folds are counted from 0, and there are at least two, "
                "so the first of five is 0/5 and the last 4/5."
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.number}"


def read_fold(text: str, seed: int = 0) -> Fold:
    """The fold of a text such as "0/5".

    Raises:
        UsageError: the text means no fold.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise UsageError(f"the fold is {text!r}: give its index, counted from 0, and their number, such as 0/5.")
    return Fold(int(match[1]), int(match[2]), seed)


def take_fold(store: Store, fold: Fold) -> None:
    """Give the cases of this open store the splits of a fold instead of their own; its files do not change.

    The folds are made of all cases of the store, and do not depend on what is hidden.

    Raises:
        UsageError: there are more folds than people.
        StoreError: a database is damaged, so that its people are unknown.
    """
    splits = splits_of_fold(store.cases, fold)
    for name, database in store.databases.items():
        database.resplit({case.name: splits[name, case.name] for case in database.cases})


def splits_of_fold(cases: Collection[Case], fold: Fold) -> dict[tuple[str, str], str]:
    """The split of each case, by database and name.

    The people of the fold are "test". Of the others of each database `VALIDATION_SHARE` are "val" (at least one of two
    or more), and the rest are "train".

    Raises:
        UsageError: there are more folds than people.
    """
    people = people_of(cases)
    if fold.number > len(people):
        raise UsageError(f"there are {fold.number} folds, but only {len(people)} people: give fewer folds.")
    folds = _dealt(people, [1 / fold.number] * fold.number, f"{fold.seed}:folds")
    others = [person for person, index in zip(people, folds, strict=True) if index != fold.index]
    parts = _dealt(others, [1 - VALIDATION_SHARE, VALIDATION_SHARE], f"{fold.seed}:{fold}:validation")
    splits = {_key(case): "test" for case in cases}
    for person, part in zip(others, parts, strict=True):
        splits |= {_key(case): ("train", "val")[part] for case in person}
    return splits


def people_of(cases: Collection[Case]) -> list[Person]:
    """The cases of each person, sorted. Cases of one subject of a database, or that share a scan, are one person's."""
    groups: dict[object, list[Case]] = {}
    for case in sorted(cases, key=_key):
        keys = [(case.database, case.subject or case.name), *case.content.values()]
        joined: list[Case] = []
        for group in {id(groups[key]): groups[key] for key in keys if key in groups}.values():
            joined += group
        joined.append(case)
        for member in joined:
            members_keys = [(member.database, member.subject or member.name), *member.content.values()]
            groups |= dict.fromkeys(members_keys, joined)
    return sorted(
        {id(group): tuple(sorted(group, key=_key)) for group in groups.values()}.values(),
        key=lambda person: _key(person[0]),
    )


def _dealt(people: Sequence[Person], shares: Sequence[float], seed: str) -> list[int]:
    """A part for each person, so that every database is divided by the shares, and so are its sites.

    The people of a database, in the order of `_turned`, each go to the part that is furthest below its share of this
    database so far; of equal ones to that with the fewest people in all, so that no part stays empty. A person in
    several databases gets a part with the first of them, and counts in all.
    """
    parts = range(len(shares))
    chosen: dict[int, int] = {}
    by_database: dict[str, list[int]] = {}
    for index, person in enumerate(people):
        for database in dict.fromkeys(case.database for case in person):
            by_database.setdefault(database, []).append(index)
    for database, members in sorted(by_database.items()):
        counts = Counter(chosen[index] for index in members if index in chosen)
        free = _turned([index for index in members if index not in chosen], people, f"{seed}:{database}")
        for num_left, index in zip(range(len(free), 0, -1), free, strict=True):
            num, totals = sum(counts.values()) + 1, Counter(chosen.values())
            empty = [part for part in parts if not counts[part]]
            # The last people go to parts that would stay empty otherwise.
            open_parts = empty if 0 < num_left <= len(empty) < len(members) else parts
            due = {part: (shares[part] * num - counts[part], -totals[part]) for part in open_parts}
            chosen[index] = max(open_parts, key=lambda part: (due[part], _rank(f"{database} {part}", seed)))
            counts[chosen[index]] += 1
    return [chosen[index] for index in range(len(people))]


def _turned(members: Sequence[int], people: Sequence[Person], seed: str) -> list[int]:
    """The people sorted by site and sequences, in each of these in a seeded order, from a seeded place on."""
    circle = sorted(members, key=lambda index: (_stratum(people[index]), _rank(str(_key(people[index][0])), seed)))
    start = int(_rank("start", seed), 16) % max(1, len(circle))
    return circle[start:] + circle[:start]


def _stratum(person: Person) -> tuple[str, tuple[str, ...]]:
    return person[0].site, tuple(sorted({name for case in person for name in case.content or case.modalities}))


def _rank(text: str, seed: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _key(case: Case) -> tuple[str, str]:
    return case.database, case.name
