"""The same scan in two cases of a store: found by its voxels, reported, and kept in one split."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import zarr

from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.columns import read_columns_of, watch
from multiseg.store.durable import sync_names
from multiseg.store.findings import Finding, Severity, by_name
from multiseg.store.hierarchy import database_names, open_group
from multiseg.store.rows import describe_row

NEAREST_TO_TRAINING = ("train", "val", "test")
MESSAGES = {
    "DUPLICATE_SCAN": "has a scan with the same voxels as one of {first}. If they are the same patient, leave one of "
    "them out; if not, a file was copied to the wrong place. Until then both are kept in one split.",
    "DUPLICATE_LABEL": "has the same label file as {first}. Unless they are the same patient, one of them has the "
    "other's lesions: put the right file in its place and ingest with --replace.",
    "SPLIT_CHANGED": "moved from split {split} to {first_split}, the split of {first}: they are the same person, or "
    "share a scan.",
    "SUBJECT_IN_TWO_SPLITS": "is given the split {split}, but {first}, which is the same person or has the same scan, "
    "is given {first_split}. Test results would look too good: give both the same split.",
}


@dataclass(frozen=True)
class Row:
    """A committed case: its place in the store, its subject and its split."""

    database: str
    row: int
    case: str
    subject: str
    split: str
    is_given: bool

    @property
    def person(self) -> tuple[str, str]:
        return self.database, self.subject


def reconcile_duplicates(root: zarr.Group | None, databases: Collection[str]) -> dict[str, tuple[Finding, ...]]:
    """Report scans that two cases share, and move every person's cases into one split. Returns findings by database.

    People who share a scan count as one person. A split that the user gave, now or before, is never changed; the drawn
    splits of the same person follow it. Two given splits that differ are an error that the user must fix. Drawn splits
    that differ become the one nearest to training: a model may have learnt from that case, so it must not be tested on.

    Args:
        databases: the databases of this ingest; only shared scans that involve one of them are reported.
    """
    if root is None:
        return {}
    rows = [row for name in database_names(root) for row in _rows(root, name)]
    same = _sharing_a_scan(root, rows)
    findings, moves = reconciled(rows, same, _sharing_a_label(root, rows), databases)
    arrays = {name: DatabaseArrays(root[name]) for name in {row.database for row, _ in moves}}
    for row, split in moves:
        describe_row(arrays[row.database], row.row, split=split)
    sync_names(root)
    by_database = by_name(findings, lambda finding: finding.database)
    return {database: tuple(group) for database, group in by_database.items()}


def reconciled(
    rows: Sequence[Row], same: Sequence[Sequence[Row]], labels: Sequence[Sequence[Row]], databases: Collection[str]
) -> tuple[list[Finding], list[tuple[Row, str]]]:
    """The findings on a store's cases, and the cases that must move to another split, with that split.

    Args:
        same, labels: groups of cases that share a scan, and a label file; each group in the order of `rows`.
    """
    findings: list[Finding] = []
    for groups, code in ((same, "DUPLICATE_SCAN"), (labels, "DUPLICATE_LABEL")):
        for group in groups:
            if not {row.database for row in group}.isdisjoint(databases):
                findings += [_finding(code, group[0], row) for row in group[1:]]
    moves: list[tuple[Row, str]] = []
    for person in _people(rows, same):
        person_findings, person_moves = _into_one_split(person)
        findings += person_findings
        moves += person_moves
    return findings, moves


def _into_one_split(rows: Sequence[Row]) -> tuple[list[Finding], list[tuple[Row, str]]]:
    """The findings on one person's cases, and those that must move to another split, which was drawn."""
    if len({row.split for row in rows}) == 1:
        return [], []
    given = [row for row in rows if row.is_given]
    leader = given[0] if given else min(rows, key=lambda row: NEAREST_TO_TRAINING.index(row.split))
    findings, moves = [], []
    for row in rows:
        if row.split == leader.split:
            continue
        if row.is_given:
            findings.append(_finding("SUBJECT_IN_TWO_SPLITS", leader, row))
            continue
        moves.append((row, leader.split))
        findings.append(_finding("SPLIT_CHANGED", leader, row))
    return findings, moves


def _rows(root: zarr.Group, database: str) -> list[Row]:
    group = open_group(root.store_path, database)
    rows = np.flatnonzero(watch(group)[0] == schema.COMMITTED)
    case, subject, split, given = read_columns_of(group, ["case", "subject", "split", "split_given"]).values()
    return [
        Row(database, int(row), str(case[row]), str(subject[row]), str(split[row]), bool(given[row])) for row in rows
    ]


def _sharing_a_scan(root: zarr.Group, rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of cases that share a scan, in the order of `rows`; each group once."""
    cases_of: dict[str, list[Row]] = {}
    for database, database_rows in by_name(rows, lambda row: row.database).items():
        content = read_columns_of(open_group(root.store_path, database), ["content"])["content"]
        for row in database_rows:
            for digest in {str(digest) for digest in content[row.row] if digest}:
                cases_of.setdefault(digest, []).append(row)
    return list({tuple(group): group for group in cases_of.values() if len(group) > 1}.values())


def _sharing_a_label(root: zarr.Group, rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of cases of different people with the same label file, if it is not empty."""
    cases_of: dict[str, list[Row]] = {}
    for database, database_rows in by_name(rows, lambda row: row.database).items():
        group = open_group(root.store_path, database)
        sources, counts = read_columns_of(group, ["sources", "foreground_count"]).values()
        for row in (row for row in database_rows if counts[row.row].any()):
            case_sources = json.loads(str(sources[row.row]))
            for digest in {source["sha256"] for source in case_sources if source["role"].startswith("label:")}:
                cases_of.setdefault(digest, []).append(row)
    shared = [group for group in cases_of.values() if len({row.person for row in group}) > 1]
    return list({tuple(group): group for group in shared}.values())


def _people(rows: Sequence[Row], same: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The cases of each person, in the order of `rows`. People who share scans are merged, with a union-find."""
    parent: dict[tuple[str, str], tuple[str, str]] = {row.person: row.person for row in rows}

    def first_of(person: tuple[str, str]) -> tuple[str, str]:
        while parent[person] != person:
            parent[person] = parent[parent[person]]
            person = parent[person]
        return person

    for group in same:
        for row in group[1:]:
            parent[first_of(row.person)] = first_of(group[0].person)
    people: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        people.setdefault(first_of(row.person), []).append(row)
    return list(people.values())


def _finding(code: str, first: Row, row: Row) -> Finding:
    """A finding about a case that belongs together with an earlier one."""
    severity = Severity.ERROR if code == "SUBJECT_IN_TWO_SPLITS" else Severity.WARNING
    words = {"first": f"{first.database}/{first.case}", "first_split": first.split, "split": row.split}
    return Finding(severity, code, row.database, row.case, "", MESSAGES[code].format(**words))
