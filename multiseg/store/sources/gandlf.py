"""GaNDLF's table of cases: a CSV with SubjectID, Channel_0, Channel_1, ..., Label and other columns.

https://docs.mlcommons.org/GaNDLF - a word in a column's name says what it is, in lower or upper case: a channel by
"channel", "modality" or "image", the label by "label", "mask" or "segmentation".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from multiseg.errors import SourceError, UsageError, few
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import only_annotation, schema_for
from multiseg.store.sources.participants import with_numbers
from multiseg.store.sources.source_channels import spellings
from multiseg.store.sources.source_folder import Folder, grouped
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, SourceOptions, finding
from multiseg.store.sources.text_tables import read_table


def _columns(names: Iterable[str]) -> dict[str, list[str]]:
    """The columns of a table by what they are; empty if the table is not GaNDLF's."""
    columns = {"subject": [], "channel": [], "label": [], "other": [], **grouped(names, _kind)}
    return columns if len(columns["subject"]) == 1 and columns["channel"] else {}


def _kind(column: str) -> str:
    name = column.lower()
    if name in ("subjectid", "subject_id", "patientid", "patient_id"):
        return "subject"
    if "valuetopredict" in name:
        return "other"
    if re.search("channel|modality|image", name):
        return "channel"
    return "label" if re.search("label|mask|segmentation", name) else "other"


def _tables(folder: Folder) -> dict[str, list[dict[str, str]]]:
    """The rows of GaNDLF's tables directly in the folder."""
    tables = {}
    for match in folder.matches(r"[^/]+\.csv"):
        try:
            rows = read_table(folder.path(match[0]))
        except SourceError:
            continue
        if rows and _columns(rows[0]):
            tables[match[0]] = rows
    return tables


def _recognise(folder: Folder) -> str:
    tables = _tables(folder)
    return f"{few(list(tables))} with a column for the subject and one for each channel" if tables else ""


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    name, rows, columns = _only_table(folder)
    annotation = only_annotation(options)
    (subject,) = columns["subject"]
    files = {column: [row[column] for row in rows if row[column]] for column in columns["channel"]}
    names = spellings({column: paths for column, paths in files.items() if paths}, options, str(folder.path(name)))
    roles: list[Role] = []
    for row in rows:
        case = row[subject]
        roles += [Role(case, "image", names[c], folder.path(row[c])) for c in columns["channel"] if row[c]]
        roles += [Role(case, "label", annotation, folder.path(row[c])) for c in columns["label"] if row[c]]
    others = {row[subject]: {c: row[c] for c in columns["other"]} for row in rows}
    participants, doubts = with_numbers(others, name)
    return FoundFiles(
        name=Path(name).stem,
        folder=folder,
        roles=roles,
        schemas={annotation: schema_for(annotation, options.codes.get(annotation, ""))},
        participants=participants if columns["other"] else {},
        findings=(*_missing_channels(rows, subject, columns["channel"]), *doubts),
        source=name,
    )


def _only_table(folder: Folder) -> tuple[str, list[dict[str, str]], dict[str, list[str]]]:
    tables = _tables(folder)
    files = [file for file in folder.files if file.endswith(".csv") and "/" not in file]
    if not tables and len(files) == 1:
        read_table(folder.path(files[0]))  # raises if the table itself is invalid
    if len(tables) != 1:
        what = f"{len(tables)} tables of GaNDLF ({few(list(tables))})" if tables else "no table of GaNDLF"
        message = (
            f"{folder.root} has {what}. Name the one to ingest: multiseg ingest {folder.path('train.csv')} ... "
            "It has a column SubjectID and columns such as Channel_0 and Label."
        )
        raise SourceError(message, code="SEVERAL_DATASETS" if tables else "NOTHING_FOUND", file=str(folder.root))
    ((name, rows),) = tables.items()
    columns = _columns(rows[0])
    if len(columns["label"]) > 1:
        raise UsageError(f"{folder.path(name)} has the label columns {', '.join(columns['label'])}. Keep one.")
    return name, rows, columns


def _missing_channels(rows: Sequence[Mapping[str, str]], subject: str, channels: Sequence[str]) -> Iterator[Finding]:
    """Warnings of empty channels: multiseg does not need all of them, but GaNDLF does, so it may be an oversight."""
    for column in channels:
        cases = [row[subject] for row in rows if not row[column]]
        if cases:
            message = f"{column} is empty for {few(cases)}: these cases do not get that sequence. Is it missing?"
            yield finding(Severity.WARNING, "MISSING_SEQUENCE", message)


LAYOUT = Layout("gandlf", "a GaNDLF table", _recognise, _find)
