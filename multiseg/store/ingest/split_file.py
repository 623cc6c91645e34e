"""Splits that somebody has drawn already: read from a file, and given to the cases."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiseg.errors import UsageError
from multiseg.faults import check_machine
from multiseg.store.cases import CaseFiles
from multiseg.store.sources.text_tables import read_table

SPELLINGS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "ts"),
}
"""How split files call the splits, whatever the case of their letters."""
_SPLIT = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}


def canonical_split(said: str) -> str | None:
    """The split of a spelling, "" for nothing said, None for what is no split."""
    word = said.strip().lower()
    return _SPLIT.get(word) if word else ""


def split_of(said: str, where: str, case: str = "") -> str:
    """The split of a spelling, "" for nothing said.

    Raises:
        UsageError: it is no split.
    """
    split = canonical_split(said)
    if split is None:
        raise _is_none(said, where, case)
    return split


def _is_none(said: str, where: str, case: str) -> UsageError:
    who = f" of {case!r}" if case else ""
    return UsageError(f"{where}: the split {said!r}{who} is none of {', '.join(SPELLINGS)}.")


def read_split_file(name: str) -> dict[str, str]:
    """The split of every case or subject that a file names.

    The file is one of:
    - a CSV or TSV table: a case or subject in the first column, its split in the column "split";
    - JSON of the form {"train": ["P1", ...], "val": [...], "test": [...]};
    - nnU-Net's splits_final.json with a fold, counted from 0: "splits_final.json#0".

    Raises:
        UsageError: the file is none of these, or gives one name two splits.
        SourceError: it is a table that is missing or not in UTF-8.
    """
    file, hash_sign, fold = name.rpartition("#")
    path, fold = (Path(file), fold) if hash_sign and not Path(name).exists() else (Path(name), "")
    if path.suffix.lower() == ".json":
        listed = _listed_in_json(path, fold)
    elif path.suffix.lower() in (".csv", ".tsv") and not fold:
        listed = _listed_in_table(path)
    else:
        raise UsageError(f"{name} is no split file: give a .csv, .tsv or .json, with a fold as splits_final.json#0.")
    given: dict[str, str] = {}
    for case, split in listed:
        if given.setdefault(case, split) != split:
            raise UsageError(f"{path} puts {case!r} into {given[case]!r} and into {split!r}. Keep one of them.")
    if not given:
        raise UsageError(f"{path} names no case. Give one with cases and their splits.")
    return given


def _listed_in_table(path: Path) -> list[tuple[str, str]]:
    rows = read_table(path)
    columns = list(rows[0]) if rows else []
    split_column = next((column for column in columns if column.strip().lower() == "split"), None)
    if split_column is None or split_column == columns[0]:
        raise UsageError(
            f"{path} has the columns {columns}; a table of splits has a case or subject in its first column and its "
            'split in a column "split".'
        )
    listed = []
    for row in rows:
        case, said = (row[column] for column in (columns[0], split_column))
        if case or said:
            listed.append((case, _split(said, path, case)))
    return listed


def _listed_in_json(path: Path, fold: str) -> list[tuple[str, str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        check_machine(error)
        raise UsageError(f"{path} cannot be read: {error.strerror}. Check the name of the split file.") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}). Repair it, or give a table.") from error
    if isinstance(data, list):
        data = _fold(data, fold, path)
    elif fold:
        raise UsageError(f"{path} holds one split and no list of folds; leave out #{fold}.")
    if not isinstance(data, dict):
        raise UsageError(f'{path} is not of the form {{"train": ["P1", ...], "val": [...], "test": [...]}}.')
    listed = []
    for said, names in data.items():
        split = _split(said, path, "")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"{path}: {said!r} is no list of the names of cases or subjects.")
        listed += [(name, split) for name in names]
    return listed


def _fold(folds: list[Any], fold: str, path: Path) -> Any:
    if not fold.isdecimal() or int(fold) >= len(folds):
        said = f"and no number {fold!r}" if fold else "and none is named"
        raise UsageError(f"{path} holds {len(folds)} folds {said}. Name one from 0 on: {path}#0.")
    return folds[int(fold)]


def _split(said: str, path: Path, case: str) -> str:
    split = canonical_split(said)
    if not split:
        raise _is_none(said, str(path), case)
    return split


def apply_splits(
    cases: Sequence[CaseFiles], given: Mapping[str, str], left_out: Collection[str] = ()
) -> tuple[CaseFiles, ...]:
    """The cases with the splits that a file gives them, by the name of the case or of its subject.

    The file goes before what the source itself says, such as a folder "test". It has to name every case,
    except those whose split the source says: nobody's split is guessed beside a given one.

    Args:
        left_out: cases that the file may name although they are not here, since something is wrong with them.

    Raises:
        UsageError: the file names somebody who is not here, leaves a case out, or divides a person.
    """
    known = {name for case in cases for name in (case.case, case.person)} | set(left_out)
    strangers = [name for name in given if name not in known]
    if strangers:
        raise UsageError(
            f"the split file names {_some(strangers)}, but there is no such case or subject. There is {_some(known)}."
        )
    forgotten = [case.case for case in cases if not (case.case in given or case.person in given or case.split)]
    if forgotten:
        raise UsageError(
            f"the split file does not name {_some(forgotten)}. Give every case a split, so that none is guessed."
        )
    placed: list[CaseFiles] = []
    person: dict[str, tuple[str, str]] = {}
    for case in cases:
        splits = {given[name] for name in (case.case, case.person) if name in given} or {case.split}
        other, split = person.setdefault(case.person, (case.case, min(splits)))
        if splits != {split}:
            raise UsageError(
                f"the split file divides the subject {case.person!r}: {other!r} is in {split!r}, {case.case!r} in "
                f"{' and in '.join(repr(one) for one in sorted(splits))}. Keep one person in one split."
            )
        placed.append(replace(case, split=split))
    return tuple(placed)


def _some(names: Collection[str]) -> str:
    """The first few of many names, in a stable order."""
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
