"""Clean untrusted text before it is shown: on a terminal, in a log, in a table for a spreadsheet.

File names and texts of sites and servers may contain escape codes, newlines that forge a line, characters that reverse
the writing direction, or formulas of spreadsheets. They are cleaned when shown; JSON for programs keeps them.
"""

from __future__ import annotations

import math
import re
import unicodedata

LINE, TEXT = 1_000, 20_000
"""The most characters of one line, and of a text."""
_FORMULA = re.compile(r"'*(\s*[=+\-@|%＝＋－＠]|[\t\r])")
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of invisible characters: control, format, surrogate, private, unassigned, separators."""


def line(text: object, limit: int = LINE) -> str:
    """One line in which every character is visible: invisible ones are written as codes, such as \\x1b or \\n.

    >>> line("alder\\x1b[31m done\\nround 3: all is well")
    'alder\\\\x1b[31m done\\\\nround 3: all is well'
    """
    full = str(text)
    shown = "".join(map(_visible, full[:limit]))
    return shown if len(full) <= limit else f"{shown} ... ({len(full)} characters)"


def lines(text: object, limit: int = TEXT) -> str:
    """As `line`, for a text whose line breaks are kept."""
    full = str(text)
    shown = "\n".join("".join(map(_visible, part)) for part in full[:limit].replace("\r\n", "\n").split("\n"))
    return shown if len(full) <= limit else f"{shown} ... ({len(full)} characters)"


def cell(value: object) -> object:
    """A table cell that spreadsheets read as a number or a text, never as a formula.

    Numbers are unchanged. A text that begins like a formula is prefixed with an apostrophe, the mark of a text. So is
    one that begins with apostrophes and then like a formula, so that `from_cell` can undo it.
    """
    if not isinstance(value, str):
        return value
    text = line(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def from_cell(value: object) -> object:
    """The value from which `cell` made this cell, if it was one line.

    >>> from_cell(cell("=A1")), from_cell(cell("-1.5")), from_cell("'tis")
    ('=A1', '-1.5', "'tis")
    """
    if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value[1:]):
        return value[1:]
    return value


def _visible(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
    return letter if unicodedata.category(letter) not in _INVISIBLE else letter.encode("unicode_escape").decode()


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False
