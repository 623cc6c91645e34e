"""CSV tables that a spreadsheet cannot take for formulas, and that are read back without loss."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from multiseg.files import write_atomically
from multiseg.shown import cell, from_cell


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table. Texts and column names are escaped as in `shown.cell`; numbers stay.

    Raises:
        ResourceError: the file cannot be written.
    """
    write_atomically(path, table.map(cell).rename(columns=cell).to_csv(index=False).encode())


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of `write_table`. Only empty cells are missing values, and `case` is always a text."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"case": str})
    return table.map(from_cell).rename(columns=from_cell)
