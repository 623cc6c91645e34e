"""GaNDLF's table of cases: a CSV with SubjectID, Channel_0, Channel_1, ..., Label and whatever else.

https://docs.mlcommons.org/GaNDLF - a column is what a word in its name says, in any case of letters: a channel by
"channel", "modality" or "image", the label by "label", "mask" or "segmentation".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import SourceError, UsageError
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import only_annotation, schema_for
from multiseg.store.sources.named_channels import spellings
from multiseg.store.sources.participants import with_numbers
from multiseg.store.sources.source_folder import Folder, listed
from multiseg.store.sources.source_types import Found, Layout, Role, SourceOptions
from multiseg.store.sources.text_tables import read_table


@dataclass(frozen=True)
class _Columns:
    """What the columns of a table are."""

    subject: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    others: tuple[str, ...]


def _columns(names: Sequence[str]) -> _Columns | None:
    """None where the table is not GaNDLF's."""
    kinds: dict[str, list[str]] = {"channel": [], "subject": [], "label": [], "other": []}
    for name in names:
        kinds[_kind(name.lower())].append(name)
    if len(kinds["subject"]) != 1 or not kinds["channel"]:
        return None
    return _Columns(kinds["subject"][0], tuple(kinds["channel"]), tuple(kinds["label"]), tuple(kinds["other"]))


def _kind(name: str) -> str:
    if name in ("subjectid", "subject_id", "patientid", "patient_id"):
        return "subject"
    if "valuetopredict" in name:
        return "other"
    if re.search("channel|modality|image", name):
        return "channel"
    return "label" if re.search("label|mask|segmentation", name) else "other"


def _tables(folder: Folder) -> dict[str, list[dict[str, str]]]:
    """The rows of GaNDLF's tables right in the folder."""
    tables = {}
    for match in folder.fitting(r"[^/]+\.csv"):
        try:
            rows = read_table(folder.path(match[0]))
        except SourceError:
            continue
        if rows and _columns(list(rows[0])):
            tables[match[0]] = rows
    return tables


def _recognise(folder: Folder) -> str:
    tables = _tables(folder)
    return f"{listed(list(tables))} with a column for the subject and one for each channel" if tables else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    name, rows, columns = _only_table(folder)
    annotation = only_annotation(options, "lesion")
    files = {column: [row[column] for row in rows if row[column]] for column in columns.channels}
    told = spellings({column: own for column, own in files.items() if own}, options, str(folder.path(name)))
    roles: list[Role] = []
    for row in rows:
        case = row[columns.subject]
        roles += [Role(case, "image", told[c], folder.path(row[c])) for c in columns.channels if row[c]]
        roles += [Role(case, "label", annotation, folder.path(row[c])) for c in columns.labels if row[c]]
    database = options.name or Path(name).stem
    others = {row[columns.subject]: {c: row[c] for c in columns.others} for row in rows}
    participants, doubts = with_numbers(others, name, database)
    return Found(
        name=Path(name).stem,
        folder=folder,
        roles=roles,
        schemas={annotation: schema_for(annotation, options.codes.get(annotation, ""))},
        participants=participants if columns.others else {},
        findings=(*_absent(rows, columns, database), *doubts),
        source=name,
    )


def _only_table(folder: Folder) -> tuple[str, list[dict[str, str]], _Columns]:
    tables = _tables(folder)
    files = [file for file in folder.files if file.endswith(".csv") and "/" not in file]
    if not tables and len(files) == 1:
        read_table(folder.path(files[0]))  # for what is wrong with it
    if len(tables) != 1:
        what = f"{len(tables)} tables of GaNDLF ({listed(list(tables))})" if tables else "no table of GaNDLF"
        raise SourceError(
            f"{folder.root} holds {what}. Name the one to take in: multiseg ingest {folder.path('train.csv')} ... "
            "It has a column SubjectID and columns such as Channel_0 and Label.",
            code="SEVERAL_DATASETS" if tables else "NOTHING_FOUND",
            file=str(folder.root),
        )
    ((name, rows),) = tables.items()
    columns = _columns(list(rows[0]))
    assert columns is not None
    if len(columns.labels) > 1:
        raise UsageError(f"{folder.path(name)} has the label columns {', '.join(columns.labels)}. Keep one.")
    return name, rows, columns


def _absent(rows: Sequence[Mapping[str, str]], columns: _Columns, database: str) -> list[Finding]:
    """A channel that is empty in a row: GaNDLF needs all of them, we do not, but it may be an oversight."""
    findings = []
    for column in columns.channels:
        cases = [row[columns.subject] for row in rows if not row[column]]
        if cases:
            message = f"{column} is empty for {listed(cases)}: taken as a sequence that they do not have. Is that so?"
            findings.append(Finding(Severity.WARNING, "MISSING_SEQUENCE", database, "", "", message))
    return findings


LAYOUT = Layout("gandlf", "a GaNDLF table", _recognise, _find)
