"""The report of a repair: restored files, and cases that must be ingested again."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Repaired:
    """A damaged file, and what was written to replace it."""

    file: str
    what: str


@dataclass(frozen=True)
class Lost:
    """A case that must be ingested again; if `case` is "", a whole database."""

    database: str
    case: str
    file: str
    why: str


@dataclass
class Log:
    """Collects both during a repair."""

    files: list[Repaired] = field(default_factory=list)
    cases: list[Lost] = field(default_factory=list)

    def repaired(self, file: str, what: str) -> None:
        self.files.append(Repaired(file, what))

    def lost(self, database: str, case: str, file: str, why: str) -> None:
        self.cases.append(Lost(database, case, file, why))
