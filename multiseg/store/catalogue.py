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
    """The committed cases that fit every condition given; an empty condition fits all.

    They come by database and name, whatever order they were written in: what is drawn from them, or is the first few
    of them, depends on the cases alone.

    >>> older = {"age": lambda years: years > 60, "sex": "F"}
    >>> select(open_store("brain.zarr"), modalities=["FLAIR"], split="train", participants=older)

    Args:
        databases, modalities: one name or several; a case has at least these sequences.
        participants: by column, the value or a function of it that says yes; a case without the
            column, or with no value in it, does not fit. Among the cases that fit otherwise, a column has to hold
            numbers alone or texts alone.

    Raises:
        StoreError: a database that is meant is damaged; a database, sequence, pathology or column is named that the
            store does not have; a column holds
            numbers in one database and texts in another; a text is asked for where it holds numbers, or a number
            where it holds texts; or a function cannot be applied to its values. The values are named.
        UsageError: there is no such split.
    """
    if split and split not in SPLITS:
        raise UsageError(f"there is no split {split!r}; splits are {', '.join(SPLITS)}.")
    databases, modalities = as_names(databases), as_names(modalities)
    for name in databases:
        store[name]
    store.check_sound(databases)
    _check_known("sequence", modalities, (name for one in store.databases.values() for name in one.modalities))
    _check_known("pathology", [pathology] if pathology else [], (one.pathology for one in store.databases.values()))
    wanted = dict(participants or {})
    columns = {column for case in store.sound_cases for column in case.participant}
    unknown = set(wanted) - columns
    if unknown:
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


def _check_known(what: str, asked: Collection[str], held: Iterable[str]) -> None:
    """Raises StoreError for a name that no database has: to select nothing would look like an answer."""
    known = list(dict.fromkeys(name for name in held if name))
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise StoreError(f"no database has the {what} {', '.join(map(repr, unknown))}; there are {', '.join(known)}.")


def _value(case: Case, column: str) -> str | float | None:
    held = case.participant.get(column)
    return None if held == "" or held != held else held  # the last is NaN


def _check_kind(column: str, cases: Sequence[Case], wanted: Wanted) -> None:
    """Whether a column holds one kind of values, and that which is asked for.

    Raises:
        StoreError: it does not.
    """
    held = [(case, value) for case in cases if (value := _value(case, column)) is not None]
    examples = {isinstance(value, str): (case, value) for case, value in reversed(held)}
    if len(examples) > 1:
        (number_of, number), (text_of, text) = examples[False], examples[True]
        raise StoreError(
            f"the column {column!r} holds numbers in database {number_of.database!r} ({number} of {number_of.name!r}) "
            f"and texts in {text_of.database!r} ({text!r} of {text_of.name!r}). Select from one: databases=..., "
            "or write numbers in its table and ingest that again."
        )
    if examples and not callable(wanted) and isinstance(wanted, str) not in examples:
        ((is_text, (case, value)),) = examples.items()
        raise StoreError(
            f"{wanted!r} is asked for, but the column {column!r} holds {'texts' if is_text else 'numbers'}: "
            f"{value!r} of {case.database}/{case.name}. Ask for {'a text' if is_text else 'a number'}."
        )


def _fits(case: Case, column: str, wanted: Wanted) -> bool:
    """Whether a case has a value that is asked for.

    Raises:
        StoreError: the function that tells cannot take the value.
    """
    held = _value(case, column)
    if held is None:
        return False
    if not callable(wanted):
        return held == wanted
    try:
        return bool(wanted(held))
    except (TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"the function for the column {column!r} fails at {held!r} of {case.database}/{case.name}, which is a "
            f"{'text' if isinstance(held, str) else 'number'}: {error}. Give one that takes it; or, if the column was "
            "meant to hold numbers, write numbers in its table and ingest it again."
        ) from error


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

    A case's own `split` counts first, then the one that the store already `held` for its subject. The others
    are drawn systematically: subjects in order of their site and sequences, within these by a seeded rank,
    each to the split that lacks most at that point, so that every site and set of sequences is shared out
    alike. Where there are as many subjects as splits with a share, each of these gets at least one.

    Raises:
        UsageError: the fractions are negative or do not add up to 1, or a split is unknown.
        StoreError: one subject stands in two splits.
    """
    shares = list(fractions.values())
    if set(fractions) - set(SPLITS) or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"the splits {dict(fractions)} must be shares of {'/'.join(SPLITS)} that add up to 1.")
    subjects = _systematic_order(cases, seed)
    fixed = _fixed_splits(cases, held or {})
    elsewhere = Counter(split for subject, split in fixed.items() if subject not in subjects)
    quota = _quotas(len(subjects) + elsewhere.total(), fractions)
    chosen = _dealt(subjects, fixed, quota, elsewhere)
    return {case.case: chosen[case.person] for case in cases}


def _fixed_splits(cases: Sequence[CaseFiles], held: Mapping[str, str]) -> dict[str, str]:
    """The splits of subjects that nobody has to draw."""
    fixed = dict(held)
    for case in cases:
        if not case.split:
            continue
        if case.split not in SPLITS:
            raise UsageError(f"case {case.case!r} names the split {case.split!r}; splits are {', '.join(SPLITS)}.")
        if fixed.get(case.person, case.split) != case.split:
            raise StoreError(
                f"subject {case.person!r} stands in the splits {fixed[case.person]!r} and {case.split!r}. "
                "Keep one person in one split, or results will flatter the model.",
                code="SUBJECT_IN_TWO_SPLITS",
            )
        fixed[case.person] = case.split
    return fixed


def _systematic_order(cases: Sequence[CaseFiles], seed: int) -> list[str]:
    """The subjects as they are dealt: a circle of strata (site and set of sequences) in seeded order, each with
    its subjects in seeded order, entered at a seeded place."""
    visits: dict[str, list[CaseFiles]] = {}
    for case in sorted(cases, key=lambda case: case.case):
        visits.setdefault(case.person, []).append(case)
    strata = {
        subject: json.dumps([some[0].site, sorted({name for case in some for name in case.images})])
        for subject, some in visits.items()
    }
    circle = sorted(visits, key=lambda name: (_rank(strata[name], seed), strata[name], _rank(name, seed)))
    start = int(_rank("start", seed), 16) % max(1, len(circle))
    return circle[start:] + circle[:start]


def _dealt(
    subjects: Sequence[str], fixed: Mapping[str, str], quota: Mapping[str, int], elsewhere: Mapping[str, int]
) -> dict[str, str]:
    """Each subject's own split, else the one that is furthest behind its share of the subjects so far.

    `elsewhere` counts the subjects that the store has beside these ones.
    """
    count = {split: elsewhere.get(split, 0) for split in SPLITS}
    num_all, so_far = sum(quota.values()), sum(count.values())
    free = sum(subject not in fixed for subject in subjects)
    chosen: dict[str, str] = {}
    for at, subject in enumerate(subjects):
        split = fixed.get(subject)
        if split is None:
            open_splits = [s for s in SPLITS if quota[s]]
            if free <= len(SPLITS):
                later = {fixed.get(name) for name in subjects[at:]}
                empty = [s for s in open_splits if not count[s] and s not in later]
                # The last ones that are free go where otherwise nobody would be.
                open_splits = empty if free <= len(empty) else open_splits
            due = {s: quota[s] * (so_far + at + 1) / num_all - count[s] for s in open_splits}
            split = max(open_splits, key=lambda s: due[s])
            free -= 1
        chosen[subject] = split
        count[split] += 1
    return chosen


def _rank(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _quotas(num_subjects: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of subjects: at least one a split with a share, if there are as many; else all in the largest."""
    shares = {split: fractions.get(split, 0.0) for split in SPLITS}
    if num_subjects < sum(share > 0 for share in shares.values()):
        biggest = max(shares, key=lambda split: shares[split])
        return {split: num_subjects if split == biggest else 0 for split in SPLITS}
    quota = {split: max(1, round(share * num_subjects)) if share else 0 for split, share in shares.items()}
    biggest = max(quota, key=lambda split: quota[split])
    quota[biggest] += num_subjects - sum(quota.values())
    return quota
