"""What an evaluation has done so far, so that one that was cut short goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeAlias

from multiseg.files import write_atomically

Rows: TypeAlias = list[dict[str, Any]]
PROGRESS = "progress.jsonl"


class DoneCases:
    """Rows of results by case, kept in a file: a line that says what is evaluated, then a line a case.

    A file that belongs to another model, store or choice is started anew; a line that a kill cut short
    is forgotten. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, *what: object) -> None:
        self.path = None if folder is None else folder / PROGRESS
        self.key = hashlib.sha256(repr(what).encode()).hexdigest()
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
