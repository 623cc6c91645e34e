"""Choosing cases: by database, sequences, pathology, split and participants' columns; splits by subject."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import pandas as pd

from multiseg.errors import StoreError, UsageError
from multiseg.store.cases import CaseFiles
from multiseg.store.reader import Case, Store

SPLITS = ("train", "val", "test")
Wanted: TypeAlias = str | float | Callable[[str | float], bool]


def select(
    store: Store,
    databases: Collection[str] = (),
    modalities: Collection[str] = (),
    pathology: str = "",
    split: str = "",
    participants: Mapping[str, Wanted] | None = None,
) -> tuple[Case, ...]:
    """The committed cases that fit every condition given; an empty condition fits all.

    >>> older = {"age": lambda years: years > 60, "sex": "F"}
    >>> select(open_store("brain.zarr"), modalities=["FLAIR"], split="train", participants=older)

    Args:
        modalities: the case has at least these sequences.
        participants: by column, the value or a function of it that says yes; a case without the
            column, or with no value in it, does not fit.

    Raises:
        StoreError: a database or a column is named that the store does not have.
        UsageError: there is no such split.
    """
    if split and split not in SPLITS:
        raise UsageError(f"there is no split {split!r}; splits are {', '.join(SPLITS)}.")
    for name in databases:
        store[name]
    wanted = dict(participants or {})
    columns = {column for case in store.cases for column in case.participant}
    unknown = set(wanted) - columns
    if unknown:
        raise StoreError(f"no database has the column {sorted(unknown)}; there are {sorted(columns)}.")
    return tuple(
        case
        for case in store.cases
        if (not databases or case.database in databases)
        and set(modalities) <= set(case.modalities)
        and (not pathology or case.pathology == pathology)
        and (not split or case.split == split)
        and all(_fits(case.participant.get(column), value) for column, value in wanted.items())
    )


def _fits(held: str | float | None, wanted: Wanted) -> bool:
    if held is None or held == "" or held != held:  # the last is NaN
        return False
    return bool(wanted(held)) if callable(wanted) else held == wanted


def table(cases: Sequence[Case]) -> pd.DataFrame:
    """One row a case: names, split, sequences, annotated voxels and participants' columns."""
    return pd.DataFrame(
        [
            {
                "database": case.database,
                "case": case.name,
                "pathology": case.pathology,
                "subject": case.subject,
                "session": case.session,
                "site": case.site,
                "split": case.split,
                "modalities": " ".join(case.modalities),
                "extent": "x".join(str(n) for n in case.extent),
                "foreground_voxels": int(case.foreground_count.sum()),
                **case.participant,
            }
            for case in cases
        ]
    )


def assign_splits(
    cases: Sequence[CaseFiles],
    fractions: Mapping[str, float],
    seed: int,
    held: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """A split for every case, by subject: seeded, and the same whether an ingest ran once or in pieces.

    A case's own `split` counts first, then the one that the store already `held` for its subject. From
    three subjects on, every split with a share gets at least one.

    Raises:
        UsageError: the fractions are negative or do not add up to 1, or a split is unknown.
        StoreError: one subject stands in two splits.
    """
    shares = list(fractions.values())
    if set(fractions) - set(SPLITS) or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"the splits {dict(fractions)} must be shares of {'/'.join(SPLITS)} that add up to 1.")
    fixed = dict(held or {})
    for case in cases:
        subject = case.subject or case.case
        if case.split:
            if case.split not in SPLITS:
                raise UsageError(f"case {case.case!r} names the split {case.split!r}; splits are {', '.join(SPLITS)}.")
            if fixed.get(subject, case.split) != case.split:
                raise StoreError(
                    f"subject {subject!r} stands in the splits {fixed[subject]!r} and {case.split!r}. "
                    "Keep one person in one split, or results will flatter the model.",
                    code="SUBJECT_IN_TWO_SPLITS",
                )
            fixed[subject] = case.split
    subjects = sorted({case.subject or case.case for case in cases}, key=lambda name: _rank(name, seed))
    quota = _quotas(len(subjects), fractions)
    count = dict.fromkeys(SPLITS, 0)
    chosen: dict[str, str] = {}
    for subject in subjects:
        open_splits = {s: (quota[s] - count[s]) / quota[s] for s in SPLITS if quota[s]}
        split = fixed.get(subject) or max(open_splits, key=lambda s: open_splits[s])
        chosen[subject] = split
        count[split] += 1
    return {case.case: chosen[case.subject or case.case] for case in cases}


def _rank(subject: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{subject}".encode()).hexdigest()


def _quotas(num_subjects: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of subjects: at least one a split with a share when there are three or more."""
    shares = {split: fractions.get(split, 0.0) for split in SPLITS}
    if num_subjects < 3:
        biggest = max(shares, key=lambda split: shares[split])
        return {split: num_subjects if split == biggest else 0 for split in SPLITS}
    quota = {split: max(1, round(share * num_subjects)) if share else 0 for split, share in shares.items()}
    biggest = max(quota, key=lambda split: quota[split])
    quota[biggest] += num_subjects - sum(quota.values())
    return quota
