"""A cache of decoded cases in memory that the workers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from multiseg.loaders.memory import SharedMemory
from multiseg.loaders.patches import Sources


def with_places(sources: Sources, chances: Sequence[float], budget: int) -> tuple[Sources, int]:
    """The sources with a place in the cache for the cases that are drawn most often, and the bytes they need.

    Draws are independent, so the most likely cases hit more often than the latest ones. A case stays in the cache,
    since replacing it would waste its decoding.

    Args:
        chances: of each case to be drawn.
        budget: bytes.
    """
    places = [-1] * len(sources.cases)
    used = 0
    for number in sorted(range(len(places)), key=lambda case: (-chances[case], case)):
        size = -(-sources.cached_bytes(sources.cases[number]) // _ALIGNED) * _ALIGNED
        if used + size <= budget:
            places[number] = used
            used += size
    cases = [replace(case, cached_at=place) for case, place in zip(sources.cases, places, strict=True)]
    return replace(sources, cases=tuple(cases)), used


_ALIGNED = 64


class CaseCache:
    """Which cases have a place in the cache, and which are decoded. A case is decoded when it is first drawn."""

    def __init__(self, sources: Sources, num_bytes: int) -> None:
        self.memory = SharedMemory(num_bytes, reserve=False) if num_bytes else None
        self._due = {number for number, case in enumerate(sources.cases) if case.cached_at >= 0}
        self._decoded: set[int] = set()

    def is_due(self, case: int) -> bool:
        """Whether the case should be decoded now; True only once."""
        if case in self._due:
            self._due.remove(case)
            return True
        return False

    def is_decoded(self, case: int) -> None:
        """Record that a case is in the cache."""
        self._decoded.add(case)

    def is_given_up(self, case: int) -> None:
        """Record that a case was not decoded after all: it is due again."""
        self._due.add(case)

    def holds(self, case: int) -> bool:
        """Whether patches of the case can be copied from the cache."""
        return case in self._decoded
