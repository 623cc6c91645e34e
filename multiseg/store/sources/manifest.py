"""A manifest of several databases: TOML with patterns, or CSV with one row per case."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from multiseg.errors import LabelError, SourceError, UsageError
from multiseg.modalities import canonical_modality
from multiseg.sequence_reading import read_role
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Finding, Severity
from multiseg.store.ingest.split_file import split_of
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.participants import with_numbers
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_folder import grouped, is_volume
from multiseg.store.sources.source_types import DatabaseFiles, SourceOptions
from multiseg.store.sources.text_tables import read_table

CASE_COLUMNS = ("database", "pathology", "case", "subject", "session", "site", "split", "brain_mask")
LABEL_COLUMNS = ("label", "codes")
"""What is before the colon in the names of columns that only labels need."""


def find_manifest(path: Path | str, only_images: bool = False) -> list[DatabaseFiles]:
    """The databases of a .toml or .csv manifest; paths are relative to its folder.

    Args:
        only_images: leave all labels unread, whatever they are and their codes mean, see `SourceOptions`.

    Raises:
        SourceError: the manifest or a folder is missing, or rows of one database name several pathologies.
        UsageError: the manifest has unknown keys or lacks required ones.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"manifest {path} does not exist.", code="MISSING_FILE", file=str(path))
    return (_from_toml if path.suffix == ".toml" else _from_csv)(path, only_images)


def _from_toml(path: Path, only_images: bool) -> list[DatabaseFiles]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not in UTF-8 ({error}). Save it in UTF-8.") from error
    tables = data.pop("database", [])
    if data or not isinstance(tables, list) or not tables:
        raise UsageError(f"{path} must have [[database]] tables and nothing else, but has {sorted(data) or 'none'}.")
    return [_database_from_table(path, table, only_images) for table in tables]


def _database_from_table(path: Path, table: Mapping[str, Any], only_images: bool) -> DatabaseFiles:
    keys = {"root", *(field.name for field in fields(SourceOptions))} - {"layout", "yes"}
    given = {key for key, value in table.items() if value != "" or key == "root"}  # "": the manifest's own folder
    unknown, missing = set(table) - keys, {"name", "root", "pattern"} - given
    if unknown or missing:
        raise UsageError(
            f"{path}: [[database]] {table.get('name', '')!r} has unknown keys {sorted(unknown)} and lacks "
            f"{sorted(missing)}. Keys are {', '.join(sorted(keys))}."
        )
    options = SourceOptions(**{key: value for key, value in table.items() if key != "root"})
    if only_images:  # the patterns of labels stay, so that no label is taken for an image
        options = replace(options, only_images=True, codes={})
    return find_source(path.parent / table["root"], options)


def _from_csv(path: Path, only_images: bool) -> list[DatabaseFiles]:
    """The databases of a CSV manifest.

    Columns: database and case; optionally the other CASE_COLUMNS; files of a sequence (T1, FLAIR, or image:NAME for any
    name); files of labels (label or label:ANNOTATION) and the meaning of their codes (codes or codes:ANNOTATION). Every
    other column is one of participants.
    """
    lines = read_table(path)
    if not lines or not {"database", "case"} <= set(lines[0]):
        raise UsageError(f"{path} needs a header with at least database and case, and one row per case.")
    if only_images:
        lines = [{name: text for name, text in line.items() if _head(name) not in LABEL_COLUMNS} for line in lines]
    sequences = _columns_of_files(path, lines)
    _check_columns(path, [sequences.get(column, column) for column in lines[0]])
    lines = [{sequences.get(column, column): text for column, text in line.items()} for line in lines]
    by_database = grouped(lines, lambda line: line["database"])
    return [_database_from_rows(path, name, rows) for name, rows in by_database.items()]


def _columns_of_files(path: Path, lines: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The names "image:T1" for columns of files whose own name says a sequence, such as "t1_mprage_KM".

    Raises:
        UsageError: the name of a column of files has words of a sequence, but does not say which.
    """
    names: dict[str, str] = {}
    for column in lines[0]:
        is_named = ":" in column or column in CASE_COLUMNS or canonical_modality(column)
        file = "" if is_named else next((text for line in lines if is_volume(text := line[column])), "")
        reading = read_role(column) if file else None
        if reading and reading.sequence:
            names[column] = f"image:{reading.sequence}"
        elif reading and reading.named:
            raise UsageError(
                f"{path}: the column {column!r} has files such as {file}, but its name does not say which sequence "
                f"they are ({reading.why}). Call it image:{reading.named[0]} or label:NAME, or delete it."
            )
    return names


def _check_columns(path: Path, columns: list[str]) -> None:
    sequences: dict[str, str] = {}
    if "label" in columns and "label:lesion" in columns:
        raise UsageError(f"{path}: the columns 'label' and 'label:lesion' both name lesion files. Keep one.")
    for column in columns:
        name = _modality_of_column(column)
        if name and name in sequences:
            first = sequences[name]
            raise UsageError(f"{path}: the columns {first!r} and {column!r} both name {name} files. Keep one.")
        sequences[name or ""] = column


def _head(column: str) -> str:
    """What is before the colon in the name of a column; the whole name without one."""
    return column.partition(":")[0]


def _modality_of_column(column: str) -> str | None:
    head, _, tail = column.partition(":")
    return (canonical_modality(tail) or tail) if head == "image" else canonical_modality(column)


def _database_from_rows(path: Path, database: str, rows: list[dict[str, str]]) -> DatabaseFiles:
    findings: list[Finding] = []
    cases: dict[str, CaseFiles] = {}
    codes: dict[str, str] = {}
    for row in rows:
        for column, text in row.items():
            if _head(column) == "codes" and text:
                annotation = column.partition(":")[2] or "lesion"
                if codes.setdefault(annotation, text) != text:
                    raise LabelError(
                        f"{path}: database {database!r} gives {column} two meanings: {codes[annotation]!r}, {text!r}."
                    )
        if row["case"] in cases:
            message = f"{path.name} names the case {row['case']!r} of {database!r} in two rows. Give each its own name."
            findings.append(Finding(Severity.ERROR, "DUPLICATE_CASE", database, row["case"], str(path), message))
        cases[row["case"]] = _case_from_row(path, row)
    invalid = {finding.case for finding in findings}
    masks = {case.brain_mask is not None for case in cases.values()}
    if masks == {True, False}:
        message = f"{path}: some cases of {database!r} have a brain_mask and some do not. Give it for all or none."
        raise UsageError(message)
    texts = {name: {column: str(text) for column, text in case.participant.items()} for name, case in cases.items()}
    participants, doubts = with_numbers(texts, path.name, database)
    annotations = dict.fromkeys(annotation for case in cases.values() for annotation in case.labels)
    return DatabaseFiles(
        name=database,
        pathology=_pathology(path, database, rows),
        cases=tuple(
            replace(case, participant=participants[name]) for name, case in cases.items() if name not in invalid
        ),
        schemas={annotation: schema_for(annotation, codes.get(annotation, "")) for annotation in annotations},
        findings=(*findings, *doubts),
        brain_mask="file" if masks == {True} else "nonzero",
        source=path.name,
    )


def _pathology(path: Path, database: str, rows: Sequence[Mapping[str, str]]) -> str:
    """The pathology of a database; rows that leave it empty have that of the others.

    Raises:
        SourceError: there are several.
    """
    found = sorted({row["pathology"] for row in rows if row.get("pathology")})
    if len(found) > 1:
        raise SourceError(
            f"{path}: database {database!r} has several pathologies ({', '.join(found)}), but a database has one. Give "
            "the rows of each pathology a database of their own.",
            file=str(path),
        )
    return found[0] if found else ""


def _case_from_row(path: Path, row: Mapping[str, str]) -> CaseFiles:
    root = path.parent
    images, labels, participant = {}, {}, {}
    for column, text in row.items():
        head, _, tail = column.partition(":")
        modality = _modality_of_column(column)
        if column in CASE_COLUMNS or head == "codes" or not text:
            continue
        if modality:
            images[modality] = root / text
        elif head == "label":
            labels[tail or "lesion"] = root / text
        else:
            participant[column] = text
    return CaseFiles(
        case=row["case"],
        images=images,
        labels=labels,
        brain_mask=root / row["brain_mask"] if row.get("brain_mask") else None,
        subject=row.get("subject") or row["case"],
        session=row.get("session", ""),
        site=row.get("site", ""),
        split=split_of(row.get("split", ""), str(path), row["case"]),
        participant=participant,
    )
