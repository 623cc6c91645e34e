"""The subsets of a case's sequences that a model is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from multiseg.errors import UsageError
from multiseg.modalities import canonical_modality


def all_subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the full one first, then by falling size (Xu et al. 2024, "all combinations")."""
    return [subset for size in range(len(modalities), 0, -1) for subset in combinations(modalities, size)]


def full_set(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All the sequences at once."""
    return [tuple(modalities)]


def chosen_subsets(choice: str, modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Subsets by name, "all" or "full", or those of a list such as "FLAIR,FLAIR+T1" that `modalities` contain.

    A listed subset comes back in the order of `modalities`, and once, however often and in whatever order it is listed.
    """
    if choice in SUBSETS:
        return SUBSETS[choice](modalities)
    listed = [set(names.split("+")) for names in choice.split(",")]
    subsets = [tuple(name for name in modalities if name in names) for names in listed if names <= set(modalities)]
    return list(dict.fromkeys(subsets))


SUBSETS = {"all": all_subsets, "full": full_set}


def check_subsets(choice: str) -> None:
    """Raises UsageError unless it is a name of SUBSETS or a list of known sequences."""
    if choice in SUBSETS:
        return
    unknown = [name for names in choice.split(",") for name in names.split("+") if canonical_modality(name) != name]
    if unknown:
        raise UsageError(
            f"subsets is {choice!r}, but {unknown} are not sequences: give one of {', '.join(SUBSETS)}, or list "
            "sequences by their canonical names, such as FLAIR,FLAIR+T1."
        )
