"""The texts of a BIDS dataset: its description and its table of participants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import is_plain_name
from multiseg.store.ingest.split_file import canonical_split
from multiseg.store.schema import RESERVED
from multiseg.store.sources.participants import with_numbers
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import Row
from multiseg.store.sources.text_tables import read_table

NO_VALUE = "n/a"
"""How the standard writes that a value is not known."""


@dataclass(frozen=True)
class Description:
    """What `dataset_description.json` says of a dataset."""

    licence: str = ""
    citation: str = ""
    source: str = ""


def describe(folder: Folder, root: str, database: str) -> tuple[Description, tuple[Finding, ...]]:
    """A dataset's licence and origin; a description that cannot be read is a finding."""
    path = f"{root}dataset_description.json"
    if not folder.path(path).is_file():
        return Description(), ()
    try:
        said: Any = json.loads(folder.path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}), so licence and source are not known. Mend it."
        return Description(), (Finding(Severity.WARNING, "BAD_DESCRIPTION", database, "", path, message),)
    own: Mapping[str, Any] = said if isinstance(said, dict) else {}
    doi = str(own.get("DatasetDOI", ""))
    source = " ".join(text for text in (str(own.get("Name", "")), doi) if text)
    citation = str(own.get("HowToAcknowledge", "")) or doi
    return Description(str(own.get("License", "")), citation, source), ()


def participants(folder: Folder, root: str, database: str) -> tuple[dict[str, Row], tuple[Finding, ...]]:
    """The rows of `participants.tsv` by subject ("sub-01"), or by session where it names them.

    What the store cannot hold is left out with a finding: a table of several rows for a subject, and columns
    that the store has something else of the same name for.
    """
    path = f"{root}participants.tsv"
    if not folder.path(path).is_file():
        return {}, ()
    try:
        rows = _rows(folder, path)
    except SourceError as error:
        message = f"{error} The table is not used."
        return {}, (Finding(Severity.WARNING, "PARTICIPANTS", database, "", path, message),)
    columns = {column for row in rows.values() for column in row}
    left_out = sorted(column for column in columns if not _is_usable(column, rows))
    findings = []
    if left_out:
        message = f"the columns {', '.join(left_out)} are left out: the store has something else of that name."
        findings.append(Finding(Severity.WARNING, "PARTICIPANTS", database, "", path, message + " Rename them."))
    kept = {key: {c: text for c, text in row.items() if c not in left_out} for key, row in rows.items()}
    numbers, doubts = with_numbers(kept, path, database)
    return numbers, (*findings, *doubts)


def _is_usable(column: str, rows: Mapping[str, Mapping[str, str]]) -> bool:
    if column == "split":
        return all(canonical_split(row[column]) is not None for row in rows.values())
    return column == "site" or (column not in RESERVED and is_plain_name(column))


def _rows(folder: Folder, path: str) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for line in read_table(folder.path(path)):
        values = {column: _value(text) for column, text in line.items()}
        subject = _prefixed("sub-", values.get("participant_id", ""))
        session = _prefixed("ses-", values.get("session_id", ""))
        key = f"{subject}_{session}" if session else subject
        if not subject:
            raise SourceError(f"{path} has a row without participant_id: {line}.", code="PARTICIPANTS", file=path)
        if key in rows:
            raise SourceError(f"{path} names {key!r} in two rows.", code="DUPLICATE_CASE", file=path)
        rows[key] = {c: text for c, text in values.items() if c not in ("participant_id", "session_id")}
    return rows


def _value(text: str) -> str:
    return "" if text == NO_VALUE else text


def _prefixed(prefix: str, name: str) -> str:
    return name if not name or name.startswith(prefix) else prefix + name
