"""Findings about the data: errors, warnings and notes, one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeVar

from multiseg.errors import DataError

Item = TypeVar("Item")


def by_name(items: Iterable[Item], name_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Items in groups of one name; groups and items stay in their order."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(name_of(item), []).append(item)
    return groups


class Severity(StrEnum):
    """`error`: the case is not stored. `warning`: it is stored, but a person should look. `note`: for information."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Doubt:
    """A warning or note about a case, before its place is known. The message ends with what to do."""

    severity: Severity
    code: str
    message: str


@dataclass(frozen=True)
class Finding:
    """One error, warning or note: what and where. The message ends with what to do."""

    severity: Severity
    code: str
    database: str
    case: str
    file: str
    message: str

    @classmethod
    def from_error(cls, error: DataError, database: str, case: str) -> Finding:
        return cls(Severity.ERROR, error.code, database, case, error.file, str(error))

    @classmethod
    def from_doubt(cls, doubt: Doubt, database: str, case: str) -> Finding:
        return cls(doubt.severity, doubt.code, database, case, "", doubt.message)

    def to_json(self) -> dict[str, str]:
        return asdict(self) | {"severity": str(self.severity)}
