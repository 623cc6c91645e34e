"""What was found wrong, doubtful or worth knowing in the data, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from multiseg.errors import DataError


class Severity(StrEnum):
    """`error`: the case stays out of the store. `warning`: it is in, and a person should look. `note`: good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Doubt:
    """What a person should look at (a warning) or may want to know (a note); it ends in what to do."""

    severity: Severity
    code: str
    message: str


@dataclass(frozen=True)
class Finding:
    """One fault or doubt: what, where, and what to do about it (in the message's last sentence)."""

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
