"""Tables of participants: rows by case, with columns of numbers and of text.

A column has numbers if most of its values are numbers. A text among them, such as "89+" or "45Y", becomes unknown
(NaN), and a finding names it. With as many texts as numbers, the column has numbers if all texts look like one. "n/a",
"NA", "nan", "unknown", "-", "?" and empty cells are unknown and do not count. All other columns stay text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from multiseg.errors import SourceError, few
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_types import Row
from multiseg.store.sources.text_tables import read_table

TEXTS = ("subject", "session", "site", "split")
"""Columns that stay text: a site may be called "1"."""
UNKNOWN = frozenset(["", "n/a", "na", "nan", "#n/a", "null", "unknown", "missing", "-", "--", "?", "."])
"""Texts, in lower case, for an unknown value."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?", re.IGNORECASE | re.ASCII)
_LIKE_NUMBER = re.compile(r"(?:[<>~=]+|ca\.?)?\s*\d+(?:[.,]\d+)?\s*(?:\+|-\s*\d+|[dwmy]|yrs?|years?)?", re.IGNORECASE)


def read_participants(path: Path, database: str) -> tuple[dict[str, Row], tuple[Finding, ...]]:
    """The rows of a CSV or TSV table by its first column, and findings about its columns.

    Raises:
        SourceError: the table is missing, its rows do not fit its header, or a case is missing or in two rows.
    """
    lines = read_table(path)
    if not lines:
        raise SourceError(f"{path} has no rows.", code="EMPTY_TABLE", file=str(path))
    key = next(iter(lines[0]))
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        if not line[key]:
            message = f"{path} has a row without a case in its first column {key!r}: {line}. Add it."
            raise SourceError(message, code="BAD_TABLE", file=str(path))
        if line[key] in rows:
            message = f"{path} has two rows for {line[key]!r}. Keep one."
            raise SourceError(message, code="DUPLICATE_CASE", file=str(path))
        rows[line[key]] = {column: text for column, text in line.items() if column != key}
    return with_numbers(rows, path.name, database)


def with_numbers(
    rows: Mapping[str, Mapping[str, str]], table: str, database: str = ""
) -> tuple[dict[str, Row], tuple[Finding, ...]]:
    """The same rows with numbers in columns of numbers (except `TEXTS`), and findings about texts among them.

    Args:
        table, database: their names, for findings. A layout leaves the database out.
    """
    columns = [c for c in dict.fromkeys(column for row in rows.values() for column in row) if c not in TEXTS]
    numeric: set[str] = set()
    findings = []
    for column in columns:
        known = {case: text for case, row in rows.items() if (text := row.get(column, "")).lower() not in UNKNOWN}
        texts = {case: text for case, text in known.items() if not _NUMBER.fullmatch(text)}
        is_numeric = _is_numeric(list(texts.values()), len(known) - len(texts))
        if is_numeric:
            numeric.add(column)
        doubt = _texts_among_numbers(texts) if is_numeric else _numbers_kept_as_texts(texts, len(known))
        if doubt:
            message = f"{table}: the column {column!r} {doubt}"
            findings.append(Finding(Severity.WARNING, "NOT_A_NUMBER", database, "", table, message))
    converted: dict[str, Row] = {
        case: {c: _number(text) if c in numeric else text for c, text in row.items()} for case, row in rows.items()
    }
    return converted, tuple(findings)


def _is_numeric(texts: Sequence[str], num_numbers: int) -> bool:
    if len(texts) == num_numbers:
        return all(_LIKE_NUMBER.fullmatch(text) for text in texts)
    return num_numbers > len(texts)


def _number(text: str) -> float:
    return float(text) if _NUMBER.fullmatch(text) else float("nan")


def _texts_among_numbers(texts: Mapping[str, str]) -> str:
    """The warning of a column of numbers; "" if it has no texts."""
    shown = few([f"{text!r} of {case!r}" for case, text in texts.items()])
    message = (
        f"has numbers, but also {shown}. Such a value is not a number and is stored as unknown (NaN). Write a number, "
        "or leave it empty."
    )
    return message if texts else ""


def _numbers_kept_as_texts(texts: Mapping[str, str], num_known: int) -> str:
    """The warning of a text column; "" unless its values may be meant as numbers: "045Y", "45,5"."""
    if len(texts) < num_known or not all(_LIKE_NUMBER.fullmatch(text) for text in texts.values()):
        return ""
    case, text = next(iter(texts.items()))
    return (
        f"stays text, since its values are not plain numbers: {text!r} of {case!r}. If they are numbers, write only "
        "digits and a decimal point."
    )
