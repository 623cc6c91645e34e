"""Tables for a spreadsheet: no name is a formula there, and what is read back is what was written."""

import math
from pathlib import Path

import pandas as pd
import pytest

from multiseg.evaluation import tables
from multiseg.evaluation.tables import read_table, write_parquet_beside, write_table
from multiseg.shown import cell, from_cell

NAMES = [
    '=HYPERLINK("http://x","y")', "+1-555", "-A", "@SUM(A1)", "|calc", "%x", "'=A1", "''=A1", "'tis", " =A1", "alder",
    "-1.5", "007", "NA", "a,b", 'say "so"',
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_comes_back(name: str) -> None:
    assert from_cell(cell(name)) == name


def test_a_table_of_such_names_is_read_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"case": NAMES, "=metric": NAMES, "dice": [0.5, math.nan, -1.0] + [0.25] * (len(NAMES) - 3)})
    write_table(tmp_path / "cases.csv", table)
    lines = (tmp_path / "cases.csv").read_text().splitlines()
    assert lines[0] == "case,'=metric,dice"
    assert lines[1].startswith("\"'=HYPERLINK(")
    begins = {line.lstrip('" ')[0] for line in lines[1:] if not line.startswith("-1.5")}
    assert not begins & set("=+-@|%")
    pd.testing.assert_frame_equal(read_table(tmp_path / "cases.csv"), table, check_dtype=False)


def test_databases_and_cases_that_are_called_by_numbers_stay_texts(tmp_path: Path) -> None:
    table = pd.DataFrame({"database": ["007"], "case": ["010"], "dice": [0.5]})
    write_table(tmp_path / "cases.csv", table)
    pd.testing.assert_frame_equal(read_table(tmp_path / "cases.csv"), table, check_dtype=False)


def test_parquet_keeps_texts_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"case": NAMES, "dice": [0.5, math.nan, -1.0] + [0.25] * (len(NAMES) - 3), "num_cases": 3})
    assert write_parquet_beside(tmp_path / "cases.csv", table)
    assert [path.name for path in tmp_path.iterdir()] == ["cases.parquet"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "cases.parquet"), table, check_dtype=False)


def test_without_pyarrow_no_parquet_of_an_earlier_table_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    (tmp_path / "cases.parquet").write_bytes(b"of an earlier evaluation")
    assert not write_parquet_beside(tmp_path / "cases.csv", pd.DataFrame({"case": ["a"]}))
    assert not list(tmp_path.iterdir())
