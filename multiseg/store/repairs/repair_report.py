"""What a repair did, and what only a new ingest can bring back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Repaired:
    """A damaged file, and what was written in its place."""

    file: str
    what: str


@dataclass(frozen=True)
class Lost:
    """A case, or where `case` is "" a whole database, that has to be ingested again."""

    database: str
    case: str
    file: str
    why: str


@dataclass
class Log:
    """Both, as they are found."""

    files: list[Repaired] = field(default_factory=list)
    cases: list[Lost] = field(default_factory=list)

    def repaired(self, file: str, what: str) -> None:
        self.files.append(Repaired(file, what))

    def lost(self, database: str, case: str, file: str, why: str) -> None:
        self.cases.append(Lost(database, case, file, why))
