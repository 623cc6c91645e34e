"""The folder of an evaluation: whose results it holds, and what one that was cut short has done so far."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeAlias

from multiseg.errors import UsageError
from multiseg.files import check_files, check_folder, write_atomically

Rows: TypeAlias = list[dict[str, Any]]
PROGRESS = "progress.jsonl"
TABLES, SUMMARY, MONTAGE = ("cases.csv", "summary.csv"), "summary.json", "montage.png"


def key_of(*what: object) -> str:
    """A short name for what is evaluated: another model, store or choice has another."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def check_room(folder: Path, key: str, overwrite: bool = False) -> None:
    """Whether the results of an evaluation may go into a folder: its own former ones are replaced, others are not.

    Args:
        key: of the evaluation.
        overwrite: whether the results of another one may be replaced.

    Raises:
        UsageError: other results are there, it is something else (a store, a folder of scans), or a file is read-only.
    """
    check_folder(folder, own=(PROGRESS, SUMMARY))
    files = [folder / name for name in (*TABLES, SUMMARY, MONTAGE)]
    there = [path.name for path in files if path.exists()]
    if there and not overwrite and _key_in(folder / SUMMARY) != key:
        raise UsageError(
            f"{folder} holds the {there[0]} of another evaluation (of another model, store or choice). "
            "Choose another --out, or pass --overwrite."
        )
    check_files(files, overwrite=True)


def _key_in(summary: Path) -> str | None:
    try:
        said = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(said["key"]) if isinstance(said, dict) and said.get("key") else None


class DoneCases:
    """Rows of results by case, kept in a file: a line that says what is evaluated, then a line a case.

    A file that belongs to another model, store or choice is started anew; a line that a kill cut short
    is forgotten. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, *what: object) -> None:
        self.path = None if folder is None else folder / PROGRESS
        self.key = key_of(*what)
        self.rows: dict[str, Rows] = {}
        if self.path is not None:
            self.rows = self._read(self.path)
            lines = [{"key": self.key}, *({"case": case, "rows": rows} for case, rows in self.rows.items())]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _read(self, path: Path) -> dict[str, Rows]:
        if not path.is_file():
            return {}
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines[:1] != [json.dumps({"key": self.key})]:
            return {}
        rows = {}
        for line in lines[1:]:
            try:
                done = json.loads(line)
            except ValueError:
                continue
            rows[done["case"]] = done["rows"]
        return rows

    def add(self, case: str, rows: Rows) -> None:
        """Keep what came out for a case."""
        self.rows[case] = rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": case, "rows": rows}) + "\n")
