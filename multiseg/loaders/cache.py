"""Decoded cases in memory that the workers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from multiseg.loaders.memory import SharedMemory
from multiseg.loaders.patches import Sources


def with_places(sources: Sources, chances: Sequence[float], budget: int) -> tuple[Sources, int]:
    """The sources with a place in the cache for those cases that are drawn most often, and the bytes they take.

    Draws are independent of each other, so nothing tells which case comes next but its chance: to keep the likeliest
    cases hits more often than to keep the latest ones, and a case never gives way, which would waste its decoding.

    Args:
        chances: of each case to be drawn.
        budget: bytes.
    """
    places = [-1] * len(sources.cases)
    taken = 0
    for number in sorted(range(len(places)), key=lambda one: (-chances[one], one)):
        size = -(-sources.cached_bytes(sources.cases[number]) // _ALIGNED) * _ALIGNED
        if taken + size <= budget:
            places[number] = taken
            taken += size
    cases = [replace(case, cached_at=place) for case, place in zip(sources.cases, places, strict=True)]
    return replace(sources, cases=tuple(cases)), taken


_ALIGNED = 64


class CaseCache:
    """Which cases have a place in the cache, and which lie decoded in it. A case is decoded when it is first drawn."""

    def __init__(self, sources: Sources, num_bytes: int) -> None:
        self.memory = SharedMemory(num_bytes, reserve=False) if num_bytes else None
        self._due = {number for number, case in enumerate(sources.cases) if case.cached_at >= 0}
        self._held: set[int] = set()

    def is_due(self, case: int) -> bool:
        """Whether it is time to have the case decoded; said once."""
        if case in self._due:
            self._due.remove(case)
            return True
        return False

    def is_decoded(self, case: int) -> None:
        """Take note that a case is in the cache."""
        self._held.add(case)

    def is_given_up(self, case: int) -> None:
        """Take note that a case is not decoded after all: it is due again."""
        self._due.add(case)

    def holds(self, case: int) -> bool:
        """Whether patches of the case can be cut from the cache."""
        return case in self._held
