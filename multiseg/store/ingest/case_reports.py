"""What became of each case of an ingest, in a line: its files and what they were taken for, its brain and its lesions.

A wrong sequence, a head taken for a brain or a brain taken for a lesion shows here at a glance.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles, LabelFile, Series, paths_of
from multiseg.store.findings import Finding, Severity
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.store.sources.source_types import DatabaseFiles


@dataclass(frozen=True)
class Volumes:
    """Of a prepared case in ml: its brain, and by annotation all of its lesions together."""

    brain_ml: float
    lesions_ml: Mapping[str, float]


@dataclass(frozen=True)
class CaseReport:
    """One case.

    Attributes:
        outcome: "written"; "skipped", since the store has it from these files; "failed"; "checked" or "new", where
            nothing is written.
        files: by role ("T1", "label:lesion", "brain_mask") the file, relative to the folder of all files; empty where
            no case could be made of what was found.
        brain_ml: NaN where the case was not prepared.
        lesions_ml: by annotation, of those that name lesions.
        codes: of its findings, errors first.
    """

    database: str
    case: str
    outcome: str
    files: Mapping[str, str] = field(default_factory=dict)
    brain_ml: float = math.nan
    lesions_ml: Mapping[str, float] = field(default_factory=dict)
    codes: tuple[str, ...] = ()
    is_doubtful: bool = False

    def to_json(self) -> dict[str, Any]:
        """For scripts; `is_doubtful` says that an error or a warning is among the codes."""
        return {
            "database": self.database, "case": self.case, "outcome": self.outcome, "files": dict(self.files),
            "brain_ml": self.brain_ml, "lesions_ml": dict(self.lesions_ml), "codes": list(self.codes),
            "is_doubtful": self.is_doubtful,
        }  # fmt: skip


def volumes_of(prepared: PreparedCase, schemas: Mapping[str, LabelSchema]) -> Volumes:
    """What a prepared case holds, as it is stored."""
    lesions = {}
    for annotation, structures in prepared.structures_ml.items():
        names = [one.name for one in schemas[annotation].structures if one.kind == "lesion"]
        if names:
            lesions[annotation] = sum(structures.get(name, 0.0) for name in names)
    return Volumes(prepared.brain_ml, lesions)


def case_reports(
    files: DatabaseFiles, outcomes: Mapping[str, str], volumes: Mapping[str, Volumes], findings: Iterable[Finding]
) -> tuple[CaseReport, ...]:
    """The cases of a database in their order, then those that no case could be made of.

    Args:
        outcomes: by case; a case without one is not reported.
        volumes: of the cases that were prepared.
    """
    by_case: dict[str, list[Finding]] = {}
    for finding in findings:
        by_case.setdefault(finding.case, []).append(finding)
    known = {case.case: case for case in files.cases}
    root = _common_folder(files.cases)
    severities = list(Severity)
    reports = []
    for name in [*(name for name in known if name in outcomes), *(name for name in outcomes if name not in known)]:
        own = sorted(by_case.get(name, ()), key=lambda finding: severities.index(finding.severity))
        held = volumes.get(name, Volumes(math.nan, {}))
        roles = known[name].by_role if name in known else {}
        reports.append(
            CaseReport(
                files.name, name, outcomes[name],
                files={role: _shown(file, root) for role, file in roles.items()},
                brain_ml=held.brain_ml, lesions_ml=held.lesions_ml,
                codes=tuple(dict.fromkeys(finding.code for finding in own)),
                is_doubtful=any(finding.severity is not Severity.NOTE for finding in own),
            )
        )  # fmt: skip
    return tuple(reports)


def _common_folder(cases: Iterable[CaseFiles]) -> Path:
    folders = {path.parent.absolute() for case in cases for path in case.paths}
    return Path(os.path.commonpath(folders)) if folders else Path()


def _shown(file: LabelFile, root: Path) -> str:
    """A file's name below the folder of all files, with what of it is meant."""
    folder = paths_of(file)[0].parent.absolute()
    name = f"{folder.name} ({len(paths_of(file))} slices)" if isinstance(file, Series) else file.name
    place = folder.parent if isinstance(file, Series) else folder
    return (place.relative_to(root) / name).as_posix() if place.is_relative_to(root) else name
