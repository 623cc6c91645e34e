"""Choosing cases: by database, sequences, pathology, split and participants' columns; splits by subject."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import pandas as pd

from multiseg.errors import StoreError, UsageError
from multiseg.modalities import as_names
from multiseg.store.cases import CaseFiles
from multiseg.store.reader import Case, Store

SPLITS = ("train", "val", "test")
Wanted: TypeAlias = str | int | float | Callable[[str | float], bool]


def select(
    store: Store,
    databases: str | Collection[str] = (),
    modalities: str | Collection[str] = (),
    pathology: str = "",
    split: str = "",
    participants: Mapping[str, Wanted] | None = None,
) -> tuple[Case, ...]:
    """The committed cases that meet every given condition; an empty condition is met by all.

    They are sorted by database and name, so that random draws from them do not depend on the order of writing.

    >>> older = {"age": lambda years: years > 60, "sex": "F"}
    >>> select(open_store("brain.zarr"), modalities=["FLAIR"], split="train", participants=older)

    Args:
        databases: one name or several.
        modalities: one name or several; a case has at least these sequences.
        participants: by column, the wanted value, or a function that returns whether a value is wanted. A case
            without the column, or without a value in it, is not selected. Among the cases that meet the other
            conditions, a column must hold only numbers or only texts.

    Raises:
        StoreError: a selected database is damaged; the store has no such database, sequence, pathology or column; a
            column holds numbers in one database and texts in another; the wanted value is a text and the column
            holds numbers, or the other way round; or a function fails on a value. The message gives the values.
        UsageError: there is no such split.
    """
    if split and split not in SPLITS:
        raise UsageError(f"there is no split {split!r}; splits are {', '.join(SPLITS)}.")
    databases, modalities = as_names(databases), as_names(modalities)
    for name in databases:
        store[name]
    store.check_sound(databases)
    in_store = store.databases.values()
    _check_known("sequence", modalities, (name for database in in_store for name in database.modalities))
    _check_known("pathology", [pathology] if pathology else [], (database.pathology for database in in_store))
    wanted = dict(participants or {})
    columns = {column for case in store.sound_cases for column in case.participant}
    if unknown := set(wanted) - columns:
        raise StoreError(f"no database has the column {sorted(unknown)}; there are {sorted(columns)}.")
    fitting = [
        case
        for case in sorted(store.sound_cases, key=lambda case: (case.database, case.name))
        if (not databases or case.database in databases)
        and set(modalities) <= set(case.modalities)
        and (not pathology or case.pathology == pathology)
        and (not split or case.split == split)
    ]
    for column, value in wanted.items():
        _check_kind(column, fitting, value)
    return tuple(case for case in fitting if all(_fits(case, column, value) for column, value in wanted.items()))


def _check_known(what: str, wanted: Collection[str], names: Iterable[str]) -> None:
    """Raises StoreError for a name that no database has: an empty selection would look like an answer."""
    known = list(dict.fromkeys(name for name in names if name))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise StoreError(f"no database has the {what} {', '.join(map(repr, unknown))}; there are {', '.join(known)}.")


def _value(case: Case, column: str) -> str | float | None:
    value = case.participant.get(column)
    return None if value == "" or value != value else value  # the last is NaN


def _check_kind(column: str, cases: Sequence[Case], wanted: Wanted) -> None:
    """Raises StoreError if a column mixes numbers and texts, or if the wanted value is of the other kind."""
    values = [(case, value) for case in cases if (value := _value(case, column)) is not None]
    examples = {isinstance(value, str): (case, value) for case, value in reversed(values)}
    if len(examples) > 1:
        (number_of, number), (text_of, text) = examples[False], examples[True]
        raise StoreError(
            f"the column {column!r} holds numbers in database {number_of.database!r} ({number} of {number_of.name!r}) "
            f"and texts in {text_of.database!r} ({text!r} of {text_of.name!r}). Select from one "
            "database (databases=...), or write numbers in the table of the other and ingest it again."
        )
    if examples and not callable(wanted) and isinstance(wanted, str) not in examples:
        ((is_text, (case, value)),) = examples.items()
        raise StoreError(
            f"the wanted value is {wanted!r}, but the column {column!r} holds {'texts' if is_text else 'numbers'}: "
            f"{value!r} of {case.database}/{case.name}. Give {'a text' if is_text else 'a number'}."
        )


def _fits(case: Case, column: str, wanted: Wanted) -> bool:
    """Whether a case has a wanted value.

    Raises:
        StoreError: the user's function fails on the value.
    """
    value = _value(case, column)
    if value is None:
        return False
    if not callable(wanted):
        return value == wanted
    try:
        return bool(wanted(value))
    except (TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"the function for the column {column!r} fails on the {'text' if isinstance(value, str) else 'number'} "
            f"{value!r} of {case.database}/{case.name}: {error}. Give a function that accepts it; or, if the column "
            "should hold numbers, write numbers in its table and ingest it again."
        ) from error


def table(cases: Sequence[Case]) -> pd.DataFrame:
    """One row per case: names, split, sequences, annotated voxels and participants' columns."""
    return pd.DataFrame(
        [
            {
                "database": case.database,
                "case": case.name,
                **{name: getattr(case, name) for name in ("pathology", "subject", "session", "site", "split")},
                "modalities": " ".join(case.modalities),
                "extent": "x".join(str(n) for n in case.extent),
                "foreground_voxels": int(case.foreground_count.sum()),
                **case.participant,
            }
            for case in cases
        ]
    )


def assign_splits(
    cases: Sequence[CaseFiles], fractions: Mapping[str, float], seed: int, stored: Mapping[str, str] | None = None
) -> dict[str, str]:
    """A split for every case, by subject: seeded, and the same whether an ingest ran once or in pieces.

    A case's own `split` comes first, then the split of its subject in the store (`stored`). The other subjects are
    sampled systematically: they are sorted by site and sequences and then by a seeded rank, and each goes to the
    split that is furthest below its share so far. So every site and set of sequences is divided alike. If there are
    at least as many subjects as splits with a share, each of these splits gets at least one.

    Args:
        stored: the split of each subject in the store.

    Raises:
        UsageError: the fractions are negative or do not add up to 1, or a split is unknown.
        StoreError: one subject is in two splits.
    """
    shares = list(fractions.values())
    if set(fractions) - set(SPLITS) or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"invalid splits {dict(fractions)}: give shares of {'/'.join(SPLITS)} that add up to 1.")
    subjects = _systematic_order(cases, seed)
    fixed = _fixed_splits(cases, stored or {})
    elsewhere = Counter(split for subject, split in fixed.items() if subject not in subjects)
    quota = _quotas(len(subjects) + elsewhere.total(), fractions)
    chosen = _deal_out(subjects, fixed, quota, elsewhere)
    return {case.case: chosen[case.person] for case in cases}


def _fixed_splits(cases: Sequence[CaseFiles], stored: Mapping[str, str]) -> dict[str, str]:
    """The splits of subjects that are not drawn at random."""
    fixed = dict(stored)
    for case in cases:
        if not case.split:
            continue
        if case.split not in SPLITS:
            raise UsageError(f"case {case.case!r} names the split {case.split!r}; splits are {', '.join(SPLITS)}.")
        if fixed.get(case.person, case.split) != case.split:
            raise StoreError(
                f"subject {case.person!r} is in the splits {fixed[case.person]!r} and {case.split!r}. "
                "Put each person in one split only, or test results will look too good.",
                code="SUBJECT_IN_TWO_SPLITS",
            )
        fixed[case.person] = case.split
    return fixed


def _systematic_order(cases: Sequence[CaseFiles], seed: int) -> list[str]:
    """The subjects in the order in which they get their splits: strata (site and set of sequences) in seeded order,
    the subjects of each in seeded order, and all rotated by a seeded offset."""
    visits: dict[str, list[CaseFiles]] = {}
    for case in sorted(cases, key=lambda case: case.case):
        visits.setdefault(case.person, []).append(case)
    strata = {
        subject: json.dumps([cases[0].site, sorted({name for case in cases for name in case.images})])
        for subject, cases in visits.items()
    }
    circle = sorted(visits, key=lambda name: (_rank(strata[name], seed), strata[name], _rank(name, seed)))
    start = int(_rank("start", seed), 16) % max(1, len(circle))
    return circle[start:] + circle[:start]


def _deal_out(
    subjects: Sequence[str], fixed: Mapping[str, str], quota: Mapping[str, int], elsewhere: Mapping[str, int]
) -> dict[str, str]:
    """Each subject's own split, else the split that is furthest below its share of the subjects so far.

    `elsewhere` counts the other subjects of the store by split.
    """
    counts = {split: elsewhere.get(split, 0) for split in SPLITS}
    num_total, num_before = sum(quota.values()), sum(counts.values())
    free = sum(subject not in fixed for subject in subjects)
    chosen: dict[str, str] = {}
    for index, subject in enumerate(subjects):
        split = fixed.get(subject)
        if split is None:
            open_splits = [s for s in SPLITS if quota[s]]
            if free <= len(SPLITS):
                later = {fixed.get(name) for name in subjects[index:]}
                empty = [s for s in open_splits if not counts[s] and s not in later]
                # The last free subjects go to splits that would stay empty otherwise.
                open_splits = empty if free <= len(empty) else open_splits
            due = {s: quota[s] * (num_before + index + 1) / num_total - counts[s] for s in open_splits}
            split = max(open_splits, key=lambda s: due[s])
            free -= 1
        chosen[subject] = split
        counts[split] += 1
    return chosen


def _rank(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _quotas(num_subjects: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """The number of subjects of each split: at least one if it has a share. Too few subjects all go to the largest."""
    shares = {split: fractions.get(split, 0.0) for split in SPLITS}
    if num_subjects < sum(share > 0 for share in shares.values()):
        biggest = max(shares, key=lambda split: shares[split])
        return {split: num_subjects if split == biggest else 0 for split in SPLITS}
    quota = {split: max(1, round(share * num_subjects)) if share else 0 for split, share in shares.items()}
    biggest = max(quota, key=lambda split: quota[split])
    quota[biggest] += num_subjects - sum(quota.values())
    return quota
