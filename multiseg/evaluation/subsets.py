"""The subsets of a case's sequences that a model is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from multiseg.errors import UsageError
from multiseg.modalities import canonical_modality


def all_subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the full one first, then by falling size (Xu et al. 2024, "all combinations")."""
    return [s for size in range(len(modalities), 0, -1) for s in combinations(modalities, size)]


def full_set(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All the sequences at once."""
    return [tuple(modalities)]


def chosen_subsets(wanted: str, modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Subsets by name: "all", "full", or those listed, such as "FLAIR,FLAIR+T1", of which all are there.

    A listed subset comes back in the order of `modalities`.
    """
    if wanted in SUBSETS:
        return SUBSETS[wanted](modalities)
    listed = [set(names.split("+")) for names in wanted.split(",")]
    return [tuple(name for name in modalities if name in names) for names in listed if names <= set(modalities)]


SUBSETS = {"all": all_subsets, "full": full_set}


def check_subsets(wanted: str) -> None:
    """Raises UsageError for what is neither a name of SUBSETS nor a list of known sequences."""
    if wanted in SUBSETS:
        return
    strange = [name for names in wanted.split(",") for name in names.split("+") if canonical_modality(name) != name]
    if strange:
        raise UsageError(
            f"subsets {wanted!r} is none of {', '.join(SUBSETS)} and names {strange}. "
            "List sequences by their canonical names, such as FLAIR,FLAIR+T1."
        )
