"""Tables as CSV for a spreadsheet, which must not take a name for a formula, and read back without a loss."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from multiseg.files import write_atomically
from multiseg.shown import cell, from_cell


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table. Texts and the names of columns are cells as in `shown.cell`; numbers stay as they are.

    Raises:
        ResourceError: the file cannot be written.
    """
    write_atomically(path, table.map(cell).rename(columns=cell).to_csv(index=False).encode())


def read_table(path: Path) -> pd.DataFrame:
    """A table as it was before `write_table`. Only what is empty is missing, and `case` is always a text."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"case": str})
    return table.map(from_cell).rename(columns=from_cell)
