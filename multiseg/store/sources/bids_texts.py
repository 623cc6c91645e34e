"""The description and the participants of a BIDS dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import is_plain_name
from multiseg.store.ingest.split_file import canonical_split
from multiseg.store.schema import RESERVED
from multiseg.store.sources.participants import with_numbers
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import Row, finding
from multiseg.store.sources.text_tables import read_table

NO_VALUE = "n/a"
"""The standard's text for an unknown value."""


def describe(folder: Folder, root: str) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """The licence, citation and source of a dataset; a warning if its description cannot be read."""
    path = f"{root}dataset_description.json"
    if not folder.path(path).is_file():
        return {}, ()
    try:
        data: Any = json.loads(folder.path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}), so licence and source are unknown. Fix it."
        return {}, (finding(Severity.WARNING, "BAD_DESCRIPTION", message, file=path),)
    fields: Mapping[str, Any] = data if isinstance(data, dict) else {}
    doi = str(fields.get("DatasetDOI", ""))
    source = " ".join(text for text in (str(fields.get("Name", "")), doi) if text)
    citation = str(fields.get("HowToAcknowledge", "")) or doi
    return {"licence": str(fields.get("License", "")), "citation": citation, "source": source}, ()


def is_generated_by(folder: Folder, root: str, name: str) -> bool:
    """Whether the description of the dataset at `root` says that a program of this name made it."""
    try:
        data: Any = json.loads(folder.path(f"{root}dataset_description.json").read_text(encoding="utf-8-sig"))
        return any(tool.get("Name") == name for tool in data.get("GeneratedBy", ()))
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def participants(folder: Folder, root: str) -> tuple[dict[str, Row], tuple[Finding, ...]]:
    """The rows of `participants.tsv` by subject ("sub-01"), or by session if it names them.

    What cannot be stored is left out with a warning: a table with several rows for a subject, and columns with a name
    that the store uses for something else.
    """
    path = f"{root}participants.tsv"
    if not folder.path(path).is_file():
        return {}, ()
    try:
        rows = _rows(folder, path)
    except SourceError as error:
        return {}, (finding(Severity.WARNING, "PARTICIPANTS", f"{error} The table is not used.", file=path),)
    columns = {column for row in rows.values() for column in row}
    left_out = sorted(column for column in columns if not _is_usable(column, rows))
    kept = {key: {c: text for c, text in row.items() if c not in left_out} for key, row in rows.items()}
    numbers, doubts = with_numbers(kept, path)
    if not left_out:
        return numbers, doubts
    message = f"the columns {', '.join(left_out)} are left out: the store uses these names for something else."
    return numbers, (finding(Severity.WARNING, "PARTICIPANTS", f"{message} Rename them.", file=path), *doubts)


def _is_usable(column: str, rows: Mapping[str, Mapping[str, str]]) -> bool:
    if column == "split":
        return all(canonical_split(row[column]) is not None for row in rows.values())
    return column == "site" or (column not in RESERVED and is_plain_name(column))


def _rows(folder: Folder, path: str) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for line in read_table(folder.path(path)):
        values = {column: "" if text == NO_VALUE else text for column, text in line.items()}
        subject = _with_prefix("sub-", values.get("participant_id", ""))
        session = _with_prefix("ses-", values.get("session_id", ""))
        key = f"{subject}_{session}" if session else subject
        if not subject:
            raise SourceError(f"{path} has a row without participant_id: {line}.", code="PARTICIPANTS", file=path)
        if key in rows:
            raise SourceError(f"{path} has two rows for {key!r}.", code="DUPLICATE_CASE", file=path)
        rows[key] = {c: text for c, text in values.items() if c not in ("participant_id", "session_id")}
    return rows


def _with_prefix(prefix: str, name: str) -> str:
    return name if not name or name.startswith(prefix) else prefix + name
