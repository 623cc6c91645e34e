"""Runs the cells of a notebook as Jupyter does, for tests: run_notebook.py NOTEBOOK EXPRESSION ANSWER.

The shell is that of a Jupyter kernel, but this process can be forked from one that has imported multiseg. ANSWER is the
file for the value that the expression has after the last cell, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import jupytext
from IPython.core.interactiveshell import InteractiveShell


def run_notebook(path: Path, expression: str, answer: Path) -> None:
    """Run a notebook in the current folder; the error of a cell ends it."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as the kernel sets it
    shell = InteractiveShell.instance()
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()
    answer.write_text(json.dumps(shell.ev(expression)), encoding="utf-8")


if __name__ == "__main__":
    run_notebook(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
