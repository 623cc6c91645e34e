"""Faults of a store, noted one by one with their place."""

from __future__ import annotations

from dataclasses import dataclass, field

from multiseg.store.findings import Finding, Severity

RESTORE = "Ingest the case again with --redo CASE, or copy the store again from where it came."
"""What to do about bytes that are lost."""


@dataclass(frozen=True)
class Faults:
    """The findings of one database, or of one of its cases, as they are made."""

    database: str = ""
    case: str = ""
    found: list[Finding] = field(default_factory=list)

    def error(self, code: str, file: str, message: str) -> None:
        self._add(Severity.ERROR, code, file, message)

    def warning(self, code: str, file: str, message: str) -> None:
        self._add(Severity.WARNING, code, file, message)

    def note(self, code: str, file: str, message: str) -> None:
        self._add(Severity.NOTE, code, file, message)

    def _add(self, severity: Severity, code: str, file: str, message: str) -> None:
        self.found.append(Finding(severity, code, self.database, self.case, file, message))
