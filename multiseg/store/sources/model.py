"""What every source yields: databases with their cases' files, and what was found doubtful on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Finding


@dataclass(frozen=True)
class DatabaseFiles:
    """One database as found on disk: its cases, the meaning of its labels, and findings so far.

    Cases with an error among `findings` are not in `cases`.
    """

    name: str
    pathology: str
    cases: tuple[CaseFiles, ...]
    schemas: Mapping[str, LabelSchema]
    findings: tuple[Finding, ...] = ()
    brain_mask: str = "nonzero"
    licence: str = ""
    citation: str = ""
    source: str = ""
