"""CSV tables that a spreadsheet cannot take for formulas, and that are read back without loss; the same as Parquet."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pandas as pd

from multiseg.files import write_atomically
from multiseg.shown import cell, from_cell

PARQUET = ".parquet"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table. Texts and column names are escaped as in `shown.cell`; numbers stay.

    Raises:
        ResourceError: the file cannot be written.
    """
    write_atomically(path, table.map(cell).rename(columns=cell).to_csv(index=False).encode())


def write_parquet_beside(path: Path, table: pd.DataFrame) -> bool:
    """Write the table beside its CSV file as Parquet, with texts as they are, if pyarrow is installed.

    If it is not, a Parquet file that is there is removed, since it would be that of an earlier table.

    Returns:
        whether it was written.

    Raises:
        ResourceError: the file cannot be written.
    """
    beside = path.with_suffix(PARQUET)
    if find_spec("pyarrow") is None:
        beside.unlink(missing_ok=True)
        return False
    buffer = BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    write_atomically(beside, buffer.getvalue())
    return True


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of `write_table`. Only empty cells are missing values; `database` and `case` are always texts."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"database": str, "case": str})
    return table.map(from_cell).rename(columns=from_cell)
