"""Read CSV and TSV tables so that no value can move into another column.

- Every row has as many cells as the header; else the table is refused with the row's line number, since an extra comma
  ("60,5" for 60.5) would move all values after it. A cell with a comma is in double quotes and may span several lines.
  Empty lines, and lines of empty cells, are skipped.
- Column names are unique and not empty. An unnamed column that is empty in every row is left out: it comes from a
  comma at the end of every line.
- .csv has commas and .tsv has tabs. If the header has neither, but semicolons or the other one, those separate the
  cells; if it has two kinds outside of quotes, the table is refused.
- The encoding is UTF-8, or UTF-16 with a byte order mark, as in a spreadsheet's "Unicode text".
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from multiseg.errors import SourceError, few
from multiseg.faults import check_machine

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_Line: TypeAlias = tuple[int, list[str]]
"""The line number where a row begins, from 1, and its cells."""


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file, each a dict by column, without spaces around names and values.

    Raises:
        SourceError: the file is missing or not text, or its rows do not fit its header.
    """
    header, *rows = _lines(path) or [(1, [])]
    width = len(header[1])
    ragged = [row for row in rows if len(row[1]) != width]
    if ragged:
        raise _ragged(path, header[1], ragged)
    kept = [index for index, name in enumerate(header[1]) if name or any(cells[index] for _, cells in rows)]
    names = [header[1][index] for index in kept]
    _check_names(path, header, names)
    return [{name: cells[index] for name, index in zip(names, kept, strict=True)} for _, cells in rows]


def _lines(path: Path) -> list[_Line]:
    """All rows that are not empty, with the header first.

    Raises:
        SourceError: as `read_table`.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(path, first), strict=True)
    try:
        return list(_rows(reader))
    except csv.Error as error:
        message = f"{path}, line {reader.line_num}: {error}. Is there a missing or extra double quote?"
        raise SourceError(message, code="BAD_TABLE", file=str(path)) from error


def _rows(reader: Iterator[list[str]]) -> Iterator[_Line]:
    number = 1
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            yield number, stripped
        number = reader.line_num + 1  # type: ignore[attr-defined]


def read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path)) from None
    except OSError as error:
        check_machine(error)
        message = f"{path} cannot be read: {error.strerror}. Check the path and its permissions."
        raise SourceError(message, code="UNREADABLE_FILE", file=str(path)) from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"{path} is not in UTF-8 ({error}). Save it in UTF-8 from the spreadsheet."
        raise SourceError(message, code="NOT_UTF8", file=str(path)) from error
    if "\0" in text:
        message = f"{path} is not in UTF-8: it contains zero bytes. Save it as CSV in UTF-8 from the spreadsheet."
        raise SourceError(message, code="NOT_UTF8", file=str(path))
    return text


def _separator(path: Path, header: str) -> str:
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    bare = re.sub(r'"[^"]*"', "", header)
    present = [separator for separator in SEPARATORS if separator in bare]
    if usual == "\t" and usual in present:  # commas belong to the names
        return usual
    if len(present) > 1:
        kinds = " and ".join(SEPARATORS[separator] for separator in present)
        message = f"{path}: the header has {kinds}: {header!r}. Quote the names with separators in them."
        raise SourceError(message, code="BAD_TABLE", file=str(path))
    return present[0] if present else usual


def _ragged(path: Path, header: Sequence[str], rows: Sequence[_Line]) -> SourceError:
    shown = "; ".join(f"line {number} has {len(cells)} cells ({' | '.join(cells)})" for number, cells in rows[:3])
    more = f"; and {len(rows) - 3} more lines" if len(rows) > 3 else ""
    message = (
        f"{path}: {shown}{more}, but the header has {len(header)}: {', '.join(header)}. Values would move to other "
        "columns. Quote values that contain the separator, write decimal points, and give every row a cell per column."
    )
    return SourceError(message, code="RAGGED_TABLE", file=str(path))


def _check_names(path: Path, header: _Line, names: Sequence[str]) -> None:
    number, cells = header
    twice = [name for name, count in Counter(names).items() if count > 1]
    if "" in names:
        fault = (
            f"column {cells.index('') + 1} has values but no name. Name it, or delete it if a program added row numbers"
        )
    elif twice:
        fault = f"two columns are called {few(twice)}. Delete or rename one"
    else:
        return
    raise SourceError(f"{path}, line {number}: {fault}.", code="BAD_TABLE", file=str(path))
