"""The folder of an evaluation: which results it holds, and the progress of an interrupted evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from multiseg.errors import UsageError
from multiseg.files import check_files, check_folder, write_atomically

Rows: TypeAlias = list[dict[str, Any]]
PROGRESS = "progress.jsonl"
TABLES = ("cases.csv", "summary.csv", "reliability.csv", "cases.parquet", "summary.parquet", "reliability.parquet")
SUMMARY, MONTAGE, RELIABILITY = "summary.json", "montage.png", "reliability.png"
ANSWERED = "answered"
"""Key of summary.json, see `Evaluation.answered`."""
ENSEMBLE, FOLDS, MODELS = "ensemble", "folds", "models"
SEVERAL = (ENSEMBLE, FOLDS, MODELS)
"""What `answered` says where several models answered: by which rule, in how many folds, or only how many they were."""


def answered_in(about: Mapping[str, Any]) -> Any:
    """What a summary.json says of how the model answered, see `Evaluation.answered`; {} if as `predict` does.

    Older ones of several models have only their digests, which then stand for how they answered.
    """
    answered, num = about.get(ANSWERED, {}), len(about.get(MODELS, []))
    if num > 1 and isinstance(answered, dict) and not set(SEVERAL) & set(answered):
        return {**answered, MODELS: num}
    return answered


def is_of_several(about: Mapping[str, Any]) -> bool:
    """Whether a summary.json is of several models, which answered together or each in its fold."""
    answered = answered_in(about)
    return isinstance(answered, dict) and not set(SEVERAL).isdisjoint(answered)


def not_known(given: Sequence[str]) -> UsageError:
    """The error for an evaluation that says something of how the model answered which this version does not know."""
    return UsageError(
        f"in the evaluation the model answered with {', '.join(given)}, which this version of multiseg does not "
        "know, so that its answers would not be those that were measured. Update multiseg, or evaluate again."
    )


def key_of(*identity: object) -> str:
    """A digest of what is evaluated: model, store and options."""
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def check_room(folder: Path, key: str, overwrite: bool = False) -> None:
    """Check that an evaluation may write its results to a folder: it may replace only its own earlier ones.

    Args:
        key: of the evaluation.
        overwrite: whether the results of another evaluation may be replaced.

    Raises:
        UsageError: the folder holds other results or something else (a store, scans), or a file is read-only.
    """
    check_folder(folder, own=(PROGRESS, SUMMARY))
    files = [folder / name for name in (*TABLES, SUMMARY, MONTAGE, RELIABILITY)]
    existing = [path.name for path in files if path.exists()]
    if existing and not overwrite and _key_in(folder / SUMMARY) != key:
        raise UsageError(
            f"{folder} holds the {existing[0]} of another evaluation (of another model, store or options). "
            "Choose another --out, or pass --overwrite."
        )
    check_files(files, overwrite=True)


def _key_in(summary: Path) -> str | None:
    try:
        content = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(content["key"]) if isinstance(content, dict) and content.get("key") else None


class DoneCases:
    """Rows of results by case, kept in a file: a line with the evaluation's key, then a line for each case.

    A file of another evaluation is overwritten; a truncated line is ignored. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, *identity: object) -> None:
        self.path = None if folder is None else folder / PROGRESS
        self.key = key_of(*identity)
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
        """Add the results of a case."""
        self.rows[case] = rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": case, "rows": rows}) + "\n")
