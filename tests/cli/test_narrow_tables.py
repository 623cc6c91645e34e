"""Tables in a narrow terminal: parts that have the names of the rows, and no broken word."""

import io
import re

import pytest
from rich.console import Console

from multiseg.cli import console
from multiseg.cli.console import print_table

COLUMNS = ["database", "sequences", "Dice", "sensitivity", "precision", "false alarms"]
ROWS = [
    ["hyperintensities", "FLAIR+T1", "0.501", "0.502", "0.503", "11"],
    ["b", "T1", "0.601", "0.602", "0.603", "12"],
]


def printed(monkeypatch: pytest.MonkeyPatch, width: int, right: list[str]) -> str:
    file = io.StringIO()
    monkeypatch.setattr(console, "output", lambda: Console(file=file, width=width))
    print_table("Results", COLUMNS, ROWS, right)
    return file.getvalue()


def test_a_table_that_fits_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch, 100, COLUMNS[2:]).count("database") == 1


@pytest.mark.parametrize("width", [50, 60, 70])
def test_each_part_names_its_rows(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, width, COLUMNS[2:])
    assert max(map(len, text.splitlines())) <= width
    assert text.count("Results") == 1
    num_parts = text.count("database")
    assert num_parts > 1
    for cell in ROWS[0][:2]:
        assert text.count(cell) == num_parts
    assert [len(re.findall(rf"\b{re.escape(cell)}\b", text)) for row in ROWS for cell in row[2:]] == [1] * 8


def test_names_that_leave_no_room_are_only_the_first_column(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, 36, COLUMNS[2:])
    assert max(map(len, text.splitlines())) <= 36
    assert text.count("FLAIR+T1") == 1
    assert text.count("hyperintensities") == text.count("database") > 1


def test_a_table_without_numbers_goes_by_its_first_column(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, 50, [])
    assert text.count("hyperintensities") == text.count("database") > 1
    assert text.count("FLAIR+T1") == 1
