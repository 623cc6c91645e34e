"""The same scan in two places of a store: found by its voxels, told, and kept in one split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import zarr

from multiseg.store import schema
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import database_names


@dataclass(frozen=True)
class _Row:
    database: str
    row: int
    case: str
    subject: str
    split: str

    @property
    def person(self) -> tuple[str, str]:
        return self.database, self.subject


def reconcile_duplicates(root: zarr.Group | None, given: Collection[tuple[str, str]]) -> dict[str, tuple[Finding, ...]]:
    """Findings, by database, on cases that share a scan with another; their persons' cases get one split.

    People who share a scan are one person. The split of the one who came into the store first holds for all, so
    that nobody who was trained on is tested on. A split that was `given` (by database and case) for this ingest
    is not changed: then the finding is an error for a person to mend.
    """
    if root is None:
        return {}
    rows = [row for name in database_names(root) for row in _rows(root, name)]
    same = _sharing_a_scan(root, rows)
    people = _one_person(same)
    findings: dict[str, list[Finding]] = {}
    for group in same:
        for row in group[1:]:
            findings.setdefault(row.database, []).append(_finding(group[0], row))
    for members in people:
        first, *others = [row for row in rows if row.person in members]
        for row in others:
            if row.split == first.split:
                continue
            if (row.database, row.case) in given:
                findings.setdefault(row.database, []).append(_conflict(first, row))
                continue
            root[row.database]["split"][row.row] = first.split
            message = f"put from split {row.split} into {first.split}, where {_name(first)}, the same person, is."
            findings.setdefault(row.database, []).append(
                Finding(Severity.WARNING, "SPLIT_CHANGED", row.database, row.case, "", message)
            )
    return {database: tuple(some) for database, some in findings.items()}


def _rows(root: zarr.Group, database: str) -> list[_Row]:
    group = root[database]
    rows = np.flatnonzero(group["status"][:] == schema.COMMITTED)
    columns = [group[name][:] for name in ("case", "subject", "split")]
    return [_Row(database, int(row), *(str(column[row]) for column in columns)) for row in rows]


def _sharing_a_scan(root: zarr.Group, rows: Sequence[_Row]) -> list[list[_Row]]:
    """Cases that have a scan in common, the first of them first; each pair once."""
    holders: dict[str, list[_Row]] = {}
    for database in dict.fromkeys(row.database for row in rows):
        content = root[database]["content"][:]
        for row in (row for row in rows if row.database == database):
            for digest in {str(digest) for digest in content[row.row] if digest}:
                holders.setdefault(digest, []).append(row)
    groups = {tuple(some): some for some in holders.values() if len(some) > 1}
    return list(groups.values())


def _one_person(same: Sequence[Sequence[_Row]]) -> list[set[tuple[str, str]]]:
    """People who share scans, joined over all of them."""
    people: list[set[tuple[str, str]]] = []
    for group in same:
        joined = {row.person for row in group}
        for other in [some for some in people if some & joined]:
            joined |= other
            people.remove(other)
        people.append(joined)
    return people


def _name(row: _Row) -> str:
    return f"{row.database}/{row.case}"


def _finding(first: _Row, row: _Row) -> Finding:
    message = (
        f"holds a scan whose voxels are those of {_name(first)}. If it is the same patient, name them alike or leave "
        "one out; if not, a file was copied to the wrong place."
    )
    return Finding(Severity.WARNING, "DUPLICATE_SCAN", row.database, row.case, "", message)


def _conflict(first: _Row, row: _Row) -> Finding:
    message = (
        f"is given the split {row.split}, but holds a scan of {_name(first)} (or of a person who does), which is in "
        f"{first.split}. Results would flatter the model: give both the same split."
    )
    return Finding(Severity.ERROR, "SUBJECT_IN_TWO_SPLITS", row.database, row.case, "", message)
