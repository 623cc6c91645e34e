"""CSV and TSV tables of patients."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from multiseg.errors import SourceError

TEXTS = ("subject", "session", "site", "split")
"""Columns that stay text: a site may be called "1"."""


def read_participants(path: Path) -> dict[str, dict[str, str | float]]:
    """A CSV or TSV table as rows by its first column; a column of numbers becomes numbers.

    Raises:
        SourceError: there is no such table, or two rows name the same case.
    """
    lines = read_table(path)
    if not lines:
        raise SourceError(f"{path} has no rows.", code="EMPTY_TABLE", file=str(path))
    key = next(iter(lines[0]))
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        if line[key] in rows:
            message = f"{path} names {line[key]!r} in two rows. Keep one."
            raise SourceError(message, code="DUPLICATE_CASE", file=str(path))
        rows[line[key]] = {column: text or "" for column, text in line.items() if column and column != key}
    return with_numbers(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file by its header.

    Raises:
        SourceError: there is no such file, or it is not in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path)) from None
    except UnicodeDecodeError as error:
        message = f"{path} is not in UTF-8 ({error}). Save it so from the spreadsheet."
        raise SourceError(message, code="NOT_UTF8", file=str(path)) from error
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))


def with_numbers(rows: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str | float]]:
    """The same rows, a column in which every value is a number (or empty) turned into numbers, but for `TEXTS`."""
    columns = {column for row in rows.values() for column in row} - set(TEXTS)
    numeric = {c for c in columns if all(_number(row.get(c, "")) is not None for row in rows.values())}
    return {
        case: {c: float(text or "nan") if c in numeric else text for c, text in row.items()}
        for case, row in rows.items()
    }


def _number(text: str) -> float | None:
    try:
        return float(text or "nan")
    except ValueError:
        return None
