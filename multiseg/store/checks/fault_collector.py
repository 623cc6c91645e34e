"""Collecting the faults of a store, with their places."""

from __future__ import annotations

from dataclasses import dataclass, field

from multiseg.store.findings import Finding, Severity

REDO = "Ingest the case again with --redo CASE, or copy the store again from its source."
"""What to do about damaged voxels, which are stored only once."""
REPAIR = f"Repair the store: multiseg repair STORE. If verify still finds faults: {REDO[0].lower()}{REDO[1:]}"
"""What to do about all other damage."""


def advice(array: str) -> str:
    """What to do about a damaged or missing file of an array."""
    return REDO if array in ("image", "label") else REPAIR


@dataclass(frozen=True)
class Faults:
    """A growing list of findings of one database, or of one of its cases."""

    database: str = ""
    case: str = ""
    found: list[Finding] = field(default_factory=list)

    def error(self, code: str, file: str, message: str) -> None:
        self._add(Severity.ERROR, code, file, message)

    def damage(self, code: str, file: str, problem: str, to_do: str = REPAIR) -> None:
        """An error with what to do about it. The problem has no full stop."""
        self.error(code, file, f"{problem}. {to_do}")

    def warning(self, code: str, file: str, message: str) -> None:
        self._add(Severity.WARNING, code, file, message)

    def note(self, code: str, file: str, message: str) -> None:
        self._add(Severity.NOTE, code, file, message)

    def _add(self, severity: Severity, code: str, file: str, message: str) -> None:
        self.found.append(Finding(severity, code, self.database, self.case, file, message))
