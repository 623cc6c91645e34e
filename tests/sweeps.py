"""Sweeps: tests of many members, of which a seeded sample runs unless all are asked for."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

Member = TypeVar("Member")

ALL = bool(os.environ.get("MULTISEG_ALL_TESTS"))
"""`MULTISEG_ALL_TESTS=1 make test` runs every member of every sweep."""


def sample(members: Sequence[Member], count: int, seed: int = 0, always: Sequence[Member] = ()) -> list[Member]:
    """`count` of the members in their order: those of `always` and seeded others; all where the environment says so."""
    if ALL or count >= len(members):
        return list(members)
    others = [index for index, member in enumerate(members) if member not in always]
    chosen = set(random.Random(seed).sample(others, max(0, count - len(always))))
    return [member for index, member in enumerate(members) if index in chosen or member in always]
