"""The subsets of a case's sequences that a model is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations


def all_subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the full one first, then by falling size (Xu et al. 2024, "all combinations")."""
    return [s for size in range(len(modalities), 0, -1) for s in combinations(modalities, size)]


def full_set(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All the sequences at once."""
    return [tuple(modalities)]


SUBSETS = {"all": all_subsets, "full": full_set}
