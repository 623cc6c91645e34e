"""Reading given splits from a file, and assigning them to cases."""

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
"""Spellings of the splits in split files; upper and lower case do not matter."""
_SPLIT = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}


def canonical_split(spelling: str) -> str | None:
    """The split of a spelling; "" for an empty one, None if it is not a split."""
    word = spelling.strip().lower()
    return _SPLIT.get(word) if word else ""


def split_of(spelling: str, where: str, case: str = "", may_be_empty: bool = True) -> str:
    """The split of a spelling; "" for an empty one.

    Args:
        where: the file, for the message.
        case: the case with this split, for the message.

    Raises:
        UsageError: it is not a split.
    """
    split = canonical_split(spelling)
    if split is None or not (split or may_be_empty):
        of_case = f" of {case!r}" if case else ""
        raise UsageError(f"{where}: the split {spelling!r}{of_case} is not one of {', '.join(SPELLINGS)}.")
    return split


def read_split_file(name: str) -> dict[str, str]:
    """Read the split of every case or subject that a file names.

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
        listed = _read_json(path, fold)
    elif path.suffix.lower() in (".csv", ".tsv") and not fold:
        listed = _read_table(path)
    else:
        raise UsageError(
            f"{name} is not a split file: give a .csv, .tsv or .json file; a fold is given as splits_final.json#0."
        )
    given: dict[str, str] = {}
    for case, split in listed:
        if given.setdefault(case, split) != split:
            raise UsageError(f"{path} puts {case!r} into {given[case]!r} and into {split!r}. Keep one of them.")
    if not given:
        raise UsageError(f"{path} names no case. Give a file with cases and their splits.")
    return given


def _read_table(path: Path) -> list[tuple[str, str]]:
    rows = read_table(path)
    columns = list(rows[0]) if rows else []
    split_column = next((column for column in columns if column.strip().lower() == "split"), None)
    if split_column is None or split_column == columns[0]:
        raise UsageError(
            f"{path} has the columns {columns}; a table of splits has a case or subject in its first column and its "
            'split in a column "split".'
        )
    pairs = [(row[columns[0]], row[split_column]) for row in rows]
    filled = [(case, spelling) for case, spelling in pairs if case or spelling]
    return [(case, split_of(spelling, str(path), case, may_be_empty=False)) for case, spelling in filled]


def _read_json(path: Path, fold: str) -> list[tuple[str, str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        check_machine(error)
        raise UsageError(f"cannot read {path}: {error.strerror}. Check the name of the split file.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error}). Fix it, or give a table.") from error
    if isinstance(data, list):
        data = _fold(data, fold, path)
    elif fold:
        raise UsageError(f"{path} holds one split, not a list of folds; leave out #{fold}.")
    if not isinstance(data, dict):
        raise UsageError(f'{path} is not of the form {{"train": ["P1", ...], "val": [...], "test": [...]}}.')
    listed = []
    for spelling, names in data.items():
        split = split_of(spelling, str(path), may_be_empty=False)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"{path}: {spelling!r} is not a list of names of cases or subjects.")
        listed += [(name, split) for name in names]
    return listed


def _fold(folds: list[Any], fold: str, path: Path) -> Any:
    if not fold.isdecimal() or int(fold) >= len(folds):
        problem = f"there is no fold {fold!r}" if fold else "no fold is named"
        raise UsageError(f"{path} holds {len(folds)} folds, but {problem}. Name one, counting from 0: {path}#0.")
    return folds[int(fold)]


def apply_splits(
    cases: Sequence[CaseFiles], given: Mapping[str, str], left_out: Collection[str] = ()
) -> tuple[CaseFiles, ...]:
    """Give cases the splits from a split file, by the name of the case or of its subject.

    The file takes precedence over a split from the source, such as a folder "test". It must name every case whose split
    the source does not give, so that no split is drawn at random beside given ones.

    Args:
        given: the split by case or subject, from the file.
        left_out: other names that the file may have: of bad cases, and of cases of other databases.

    Raises:
        UsageError: the file names an unknown case or subject, leaves out a case, or puts one person into two splits.
    """
    known = {name for case in cases for name in (case.case, case.person)} | set(left_out)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(
            f"the split file names {_first_five(unknown)}, but there is no such case or subject. "
            f"Known names: {_first_five(known)}."
        )
    missing = [case.case for case in cases if not (case.case in given or case.person in given or case.split)]
    if missing:
        raise UsageError(
            f"the split file does not name {_first_five(missing)}. Give every case a split, so that none is guessed."
        )
    placed: list[CaseFiles] = []
    person: dict[str, tuple[str, str]] = {}
    for case in cases:
        splits = {given[name] for name in (case.case, case.person) if name in given} or {case.split}
        other, split = person.setdefault(case.person, (case.case, min(splits)))
        if splits != {split}:
            raise UsageError(
                f"the split file puts the subject {case.person!r} into several splits: {other!r} is in {split!r}, "
                f"{case.case!r} in {' and in '.join(map(repr, sorted(splits)))}. Put each person in one split only."
            )
        placed.append(replace(case, split=split))
    return tuple(placed)


def _first_five(names: Collection[str]) -> str:
    """The first five names in sorted order, and how many more there are."""
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
