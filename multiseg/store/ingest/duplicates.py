"""The same scan in two places of a store: found by its voxels, told, and kept in one split."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import zarr

from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.columns import watch
from multiseg.store.durable import sync_names
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import database_names
from multiseg.store.rows import describe_row

NEAREST_TO_TRAINING = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """A committed case: where it stands, whose it is, and its split."""

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
    """Findings, by database, on scans that two cases share; and every person's cases brought into one split.

    People who share a scan are one person. A split that was given, now or before, is never changed, and the
    drawn ones of the same person follow it; two given ones that differ are an error for people to mend. Drawn
    ones that differ become the one nearest to training: a model may have learnt from it, so that nothing it
    has seen is tested on.

    Args:
        databases: those of this ingest; shared scans are told where one of them is concerned.
    """
    if root is None:
        return {}
    rows = [row for name in database_names(root) for row in _rows(root, name)]
    same = _sharing_a_scan(root, rows)
    findings, moves = reconciled(rows, same, _sharing_a_label(root, rows), databases)
    _write_splits(root, moves)
    sync_names(root)
    by_database: dict[str, list[Finding]] = {}
    for finding in findings:
        by_database.setdefault(finding.database, []).append(finding)
    return {database: tuple(some) for database, some in by_database.items()}


def reconciled(
    rows: Sequence[Row], same: Sequence[Sequence[Row]], labels: Sequence[Sequence[Row]], databases: Collection[str]
) -> tuple[list[Finding], list[tuple[Row, str]]]:
    """What has to be told of a store's cases, and those that come into another split, with that split.

    Args:
        same, labels: groups of cases that share a scan, and a label file; each group in the order of `rows`.
    """
    findings = [
        tell(group[0], row)
        for groups, tell in ((same, _shared), (labels, _shared_label))
        for group in groups
        if not {one.database for one in group}.isdisjoint(databases)
        for row in group[1:]
    ]
    moves: list[tuple[Row, str]] = []
    for person in _people(rows, same):
        told, moved = _into_one_split(person)
        findings += told
        moves += moved
    return findings, moves


def _into_one_split(rows: Sequence[Row]) -> tuple[list[Finding], list[tuple[Row, str]]]:
    """One person's cases: which of them come into another split, where their splits were drawn."""
    if len({row.split for row in rows}) == 1:
        return [], []
    given = [row for row in rows if row.is_given]
    leader = given[0] if given else min(rows, key=lambda row: NEAREST_TO_TRAINING.index(row.split))
    findings, moves = [], []
    for row in rows:
        if row.split == leader.split:
            continue
        if row.is_given:
            findings.append(_conflict(leader, row))
            continue
        moves.append((row, leader.split))
        message = (
            f"put from split {row.split} into {leader.split}, where {_name(leader)} is: the same person, or a scan of "
            "the same voxels."
        )
        findings.append(Finding(Severity.WARNING, "SPLIT_CHANGED", row.database, row.case, "", message))
    return findings, moves


def _write_splits(root: zarr.Group, moves: Sequence[tuple[Row, str]]) -> None:
    arrays = {name: DatabaseArrays(root[name]) for name in dict.fromkeys(row.database for row, _ in moves)}
    for row, split in moves:
        describe_row(arrays[row.database], row.row, split=split)


def _rows(root: zarr.Group, database: str) -> list[Row]:
    group = root[database]
    rows = np.flatnonzero(watch(group)[0] == schema.COMMITTED)
    case, subject, split, given = (group[name][:] for name in ("case", "subject", "split", "split_given"))
    return [
        Row(database, int(row), str(case[row]), str(subject[row]), str(split[row]), bool(given[row])) for row in rows
    ]


def _sharing_a_scan(root: zarr.Group, rows: Sequence[Row]) -> list[list[Row]]:
    """Cases that have a scan in common, the first of them first; each pair once."""
    holders: dict[str, list[Row]] = {}
    for database, own in _by_database(rows).items():
        content = root[database]["content"][:]
        for row in own:
            for digest in {str(digest) for digest in content[row.row] if digest}:
                holders.setdefault(digest, []).append(row)
    groups = {tuple(some): some for some in holders.values() if len(some) > 1}
    return list(groups.values())


def _sharing_a_label(root: zarr.Group, rows: Sequence[Row]) -> list[list[Row]]:
    """Cases of different people with the very same label file, in which something is marked."""
    holders: dict[str, list[Row]] = {}
    for database, own in _by_database(rows).items():
        sources, counts = root[database]["sources"][:], root[database]["foreground_count"][:]
        for row in (row for row in own if counts[row.row].any()):
            digests = {s["sha256"] for s in json.loads(str(sources[row.row])) if s["role"].startswith("label:")}
            for digest in digests:
                holders.setdefault(digest, []).append(row)
    several = [some for some in holders.values() if len({row.person for row in some}) > 1]
    return list({tuple(some): some for some in several}.values())


def _by_database(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.database, []).append(row)
    return found


def _people(rows: Sequence[Row], same: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The cases of each person, those who share scans joined, in the order they came: a union-find."""
    above: dict[tuple[str, str], tuple[str, str]] = {row.person: row.person for row in rows}

    def first_of(person: tuple[str, str]) -> tuple[str, str]:
        while above[person] != person:
            above[person] = above[above[person]]
            person = above[person]
        return person

    for group in same:
        for row in group[1:]:
            above[first_of(row.person)] = first_of(group[0].person)
    people: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        people.setdefault(first_of(row.person), []).append(row)
    return list(people.values())


def _name(row: Row) -> str:
    return f"{row.database}/{row.case}"


def _shared(first: Row, row: Row) -> Finding:
    message = (
        f"holds a scan whose voxels are those of {_name(first)}. If it is the same patient, leave one of them out; if "
        "not, a file was copied to the wrong place. Until then both are kept in one split."
    )
    return Finding(Severity.WARNING, "DUPLICATE_SCAN", row.database, row.case, "", message)


def _shared_label(first: Row, row: Row) -> Finding:
    message = (
        f"has the very same label file as {_name(first)}. One of the two patients bears the other's lesions, unless "
        "they are one: put the right file in its place and ingest with --replace."
    )
    return Finding(Severity.WARNING, "DUPLICATE_LABEL", row.database, row.case, "", message)


def _conflict(first: Row, row: Row) -> Finding:
    message = (
        f"is given the split {row.split}, but {_name(first)}, the same person or a holder of the same scan, is given "
        f"{first.split}. Results would flatter the model: give both the same split."
    )
    return Finding(Severity.ERROR, "SUBJECT_IN_TWO_SPLITS", row.database, row.case, "", message)
