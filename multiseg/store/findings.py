"""Findings about the data: errors, warnings and notes, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from multiseg.errors import DataError


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
        return {
            "severity": str(self.severity),
            "code": self.code,
            "database": self.database,
            "case": self.case,
            "file": self.file,
            "message": self.message,
        }
