"""Words from elsewhere as a person may be shown them: on a terminal, in a log, in a table for a spreadsheet.

Names of files, texts of sites and of servers may hold what a terminal obeys (escape codes), what forges another line
(newlines), what turns the order of letters round, or what a spreadsheet computes. They are cleaned where they are
shown; what is saved for programs (JSON) keeps them as they are.
"""

from __future__ import annotations

import math
import re
import unicodedata

LINE, TEXT = 1_000, 20_000
"""Characters of one line, and of several."""
_FORMULA = re.compile(r"'*(\s*[=+\-@|%＝＋－＠]|[\t\r])")
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Kinds of characters that print nothing of their own: control, format, surrogates, without meaning, separators."""


def line(text: object, most: int = LINE) -> str:
    """One line in which every letter is seen: what prints nothing is written as its code, such as \\x1b or \\n.

    >>> line("alder\\x1b[31m done\\nround 3: all is well")
    'alder\\\\x1b[31m done\\\\nround 3: all is well'
    """
    full = str(text)
    shown = "".join(map(_letter, full[:most]))
    return shown if len(full) <= most else f"{shown} ... ({len(full)} characters)"


def lines(text: object, most: int = TEXT) -> str:
    """The same of a text that may have lines of its own: those that come are kept."""
    full = str(text)
    shown = "\n".join("".join(map(_letter, one)) for one in full[:most].replace("\r\n", "\n").split("\n"))
    return shown if len(full) <= most else f"{shown} ... ({len(full)} characters)"


def cell(value: object) -> object:
    """A cell of a table that a spreadsheet takes for a number or a text, never for a formula.

    Numbers stay as they are. A text that begins like a formula gets an apostrophe before it, the mark of a text; so
    does one that begins with apostrophes and then like a formula, so that `from_cell` can take it off again.
    """
    if not isinstance(value, str):
        return value
    text = line(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def from_cell(value: object) -> object:
    """What `cell` made a cell of, if that was one line.

    >>> from_cell(cell("=A1")), from_cell(cell("-1.5")), from_cell("'tis")
    ('=A1', '-1.5', "'tis")
    """
    if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value[1:]):
        return value[1:]
    return value


def _letter(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
    return letter if unicodedata.category(letter) not in _INVISIBLE else letter.encode("unicode_escape").decode()


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False
