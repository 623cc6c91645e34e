"""CSV and TSV tables, read so that no value can slip into another column.

- A row has as many cells as the header, or the table is refused with the row's line number: a comma too many
  ("60,5" for 60.5) would move every value behind it. A cell with a comma in it stands in double quotes, and may go
  on over several lines. Empty lines, and lines of empty cells, are skipped.
- Column names differ and are not empty. An unnamed column that is empty in every row is left out: it comes from a
  comma at the end of every line.
- .csv has commas and .tsv has tabs. Where the header has none of these, but semicolons or the other one, those
  separate the cells; where it has two kinds outside of quotes, the table is refused.
- UTF-8, or UTF-16 with its byte order mark, as a spreadsheet's "Unicode text".
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from multiseg.errors import SourceError
from multiseg.faults import check_machine
from multiseg.store.sources.source_folder import listed

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_Line: TypeAlias = tuple[int, list[str]]
"""Where a row begins, counted from 1, and its cells."""


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file by its header, without spaces around names and values.

    Raises:
        SourceError: there is no such file, it is no text, or its rows do not fit its header.
    """
    header, *rows = _lines(path) or [(1, [])]
    width = len(header[1])
    ragged = [row for row in rows if len(row[1]) != width]
    if ragged:
        raise _ragged(path, header[1], ragged)
    kept = [at for at, name in enumerate(header[1]) if name or any(cells[at] for _, cells in rows)]
    names = [header[1][at] for at in kept]
    _check_names(path, header, names)
    return [{name: cells[at] for name, at in zip(names, kept, strict=True)} for _, cells in rows]


def _lines(path: Path) -> list[_Line]:
    """Every line that holds something, header first.

    Raises:
        SourceError: as `read_table`.
    """
    text = _text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(path, first), strict=True)
    try:
        return list(_filled(reader))
    except csv.Error as error:
        message = f"{path}, line {reader.line_num}: {error}. Is a double quote missing, or one too many?"
        raise SourceError(message, code="BAD_TABLE", file=str(path)) from error


def _filled(reader: Iterator[list[str]]) -> Iterator[_Line]:
    begins = 1
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            yield begins, stripped
        begins = reader.line_num + 1  # type: ignore[attr-defined]


def _text(path: Path) -> str:
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
        message = f"{path} is not in UTF-8 ({error}). Save it so from the spreadsheet."
        raise SourceError(message, code="NOT_UTF8", file=str(path)) from error
    if "\0" in text:
        message = f"{path} is not in UTF-8: it holds zero bytes. Save it as CSV in UTF-8 from the spreadsheet."
        raise SourceError(message, code="NOT_UTF8", file=str(path))
    return text


def _separator(path: Path, header: str) -> str:
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    bare = re.sub(r'"[^"]*"', "", header)
    there = [separator for separator in SEPARATORS if separator in bare]
    if own == "\t" and own in there:  # commas belong to the names
        return own
    if len(there) > 1:
        kinds = " and ".join(SEPARATORS[separator] for separator in there)
        message = f"{path}: its header has {kinds}: {header!r}. Which separate the columns? Quote names that hold one."
        raise SourceError(message, code="BAD_TABLE", file=str(path))
    return there[0] if there else own


def _ragged(path: Path, header: Sequence[str], rows: Sequence[_Line]) -> SourceError:
    shown = "; ".join(f"line {number} has {len(cells)} cells ({' | '.join(cells)})" for number, cells in rows[:3])
    more = f"; and {len(rows) - 3} more lines" if len(rows) > 3 else ""
    return SourceError(
        f"{path}: {shown}{more}, but the header has {len(header)}: {', '.join(header)}. Values would slip into other "
        "columns. Quote a value that holds the separator, write a decimal point, and give every row a cell for every "
        "column.",
        code="RAGGED_TABLE",
        file=str(path),
    )


def _check_names(path: Path, header: _Line, names: Sequence[str]) -> None:
    number, cells = header
    if "" in names:
        message = (
            f"{path}, line {number}: column {cells.index('') + 1} has no name, but holds values. Name it; row numbers "
            "that a program wrote in front should be left out."
        )
        raise SourceError(message, code="BAD_TABLE", file=str(path))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        message = f"{path}, line {number}: two columns are called {listed(twice)}. Keep one, or rename one."
        raise SourceError(message, code="BAD_TABLE", file=str(path))
