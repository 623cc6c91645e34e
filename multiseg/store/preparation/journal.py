"""The record of a case's preparation: every step, and warnings and notes for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from multiseg.store.findings import Doubt, Severity


@dataclass
class Journal:
    """The steps of each role's file in order, and doubts about the case, each once."""

    doubts: list[Doubt] = field(default_factory=list)
    steps: dict[str, list[str]] = field(default_factory=dict)

    def warn(self, code: str, message: str) -> None:
        self._add(Doubt(Severity.WARNING, code, message))

    def note(self, code: str, message: str) -> None:
        self._add(Doubt(Severity.NOTE, code, message))

    def warn_all(self, pairs: Iterable[tuple[str, str]]) -> None:
        for code, message in pairs:
            self.warn(code, message)

    def _add(self, doubt: Doubt) -> None:
        if doubt not in self.doubts:
            self.doubts.append(doubt)

    def step(self, role: str, text: str) -> None:
        self.steps.setdefault(role, []).append(text)
