"""What a table says of patients: rows by case, and columns of numbers told from columns of text.

A column is one of numbers where most of its values are numbers. A text among them, such as "89+" or "45Y", is no
number and none is made of it: it is taken as not known (NaN), and a finding names it. With as many texts as numbers,
the column is one of numbers if all the texts look like one. "n/a", "NA", "nan", "unknown", "-", "?" and nothing are
not known, and say nothing of the column. Everything else stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_folder import listed
from multiseg.store.sources.source_types import Row
from multiseg.store.sources.text_tables import read_table

TEXTS = ("subject", "session", "site", "split")
"""Columns that stay text: a site may be called "1"."""
NOT_KNOWN = frozenset(["", "n/a", "na", "nan", "#n/a", "null", "unknown", "missing", "-", "--", "?", "."])
"""Texts, in lower case, that say that a value is not known."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?", re.IGNORECASE | re.ASCII)
_LIKE_NUMBER = re.compile(r"(?:[<>~=]+|ca\.?)?\s*\d+(?:[.,]\d+)?\s*(?:\+|-\s*\d+|[dwmy]|yrs?|years?)?", re.IGNORECASE)


def read_participants(path: Path, database: str) -> tuple[dict[str, Row], tuple[Finding, ...]]:
    """A CSV or TSV table as rows by its first column, and what was found in its columns.

    Raises:
        SourceError: there is no such table, its rows do not fit its header, or two rows name the same case or one none.
    """
    lines = read_table(path)
    if not lines:
        raise SourceError(f"{path} has no rows.", code="EMPTY_TABLE", file=str(path))
    key = next(iter(lines[0]))
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        if not line[key]:
            message = f"{path} has a row that names no case in its first column {key!r}: {line}. Name it."
            raise SourceError(message, code="BAD_TABLE", file=str(path))
        if line[key] in rows:
            message = f"{path} names {line[key]!r} in two rows. Keep one."
            raise SourceError(message, code="DUPLICATE_CASE", file=str(path))
        rows[line[key]] = {column: text for column, text in line.items() if column != key}
    return with_numbers(rows, path.name, database)


def with_numbers(
    rows: Mapping[str, Mapping[str, str]], table: str, database: str
) -> tuple[dict[str, Row], tuple[Finding, ...]]:
    """The same rows with numbers in columns of numbers (but for `TEXTS`), and the texts among them as findings.

    Args:
        table: the table's name, for findings.
    """
    columns = [c for c in dict.fromkeys(column for row in rows.values() for column in row) if c not in TEXTS]
    numeric: set[str] = set()
    findings = []
    for column in columns:
        said = {case: text for case, row in rows.items() if (text := row.get(column, "")).lower() not in NOT_KNOWN}
        texts = {case: text for case, text in said.items() if not _NUMBER.fullmatch(text)}
        if _is_numeric(list(texts.values()), len(said) - len(texts)):
            numeric.add(column)
            findings += _of_texts_among_numbers(column, texts, table, database)
        else:
            findings += _of_numbers_in_words(column, texts, len(said), table, database)
    made: dict[str, Row] = {
        case: {c: _number(text) if c in numeric else text for c, text in row.items()} for case, row in rows.items()
    }
    return made, tuple(findings)


def _is_numeric(texts: Sequence[str], num_numbers: int) -> bool:
    if len(texts) == num_numbers:
        return all(_LIKE_NUMBER.fullmatch(text) for text in texts)
    return num_numbers > len(texts)


def _number(text: str) -> float:
    return float(text) if _NUMBER.fullmatch(text) else float("nan")


def _of_texts_among_numbers(column: str, texts: Mapping[str, str], table: str, database: str) -> list[Finding]:
    if not texts:
        return []
    shown = listed([f"{text!r} of {case!r}" for case, text in texts.items()])
    message = (
        f"{table}: the column {column!r} holds numbers, but {shown}. Such a value is no number and is stored as not "
        "known (NaN). Write a number, or leave it empty."
    )
    return [Finding(Severity.WARNING, "NOT_A_NUMBER", database, "", table, message)]


def _of_numbers_in_words(
    column: str, texts: Mapping[str, str], num_said: int, table: str, database: str
) -> list[Finding]:
    """A column that was meant to hold numbers, perhaps: "045Y", "45,5"."""
    if len(texts) < num_said or not all(_LIKE_NUMBER.fullmatch(text) for text in texts.values()):
        return []
    case, text = next(iter(texts.items()))
    message = (
        f"{table}: the column {column!r} stays text, since its values are not plain numbers: {text!r} of {case!r}. "
        "If they are numbers, write them with digits and a decimal point alone."
    )
    return [Finding(Severity.WARNING, "NOT_A_NUMBER", database, "", table, message)]
