"""One line per case of an ingest: its outcome, its files by role, and the volumes of its brain and lesions.

A wrong sequence, a head taken for a brain, or a brain taken for a lesion is visible here at a glance.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles, LabelFile, Series, paths_of
from multiseg.store.findings import Finding, Severity, by_name
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.store.sources.source_types import DatabaseFiles


@dataclass(frozen=True)
class Volumes:
    """Volumes of a prepared case in ml: of its brain, and of all lesions together by annotation."""

    brain_ml: float
    lesions_ml: Mapping[str, float]


@dataclass(frozen=True)
class CaseReport:
    """What an ingest did with one case.

    Attributes:
        outcome: "written"; "skipped", since the store has it from these files; "failed"; in a dry run, "checked" or
            "new".
        files: the file of each role ("T1", "label:lesion", "brain_mask"), relative to the common folder of all files;
            empty if the files do not make up a case.
        brain_ml: NaN if the case was not prepared.
        lesions_ml: by annotation, for annotations with lesions.
        codes: the codes of its findings, errors first.
        is_doubtful: whether an error or a warning is among the findings.
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
        """As plain data, for scripts."""
        return asdict(self) | {"codes": list(self.codes)}


def volumes_of(prepared: PreparedCase, schemas: Mapping[str, LabelSchema]) -> Volumes:
    """The volumes of a prepared case."""
    lesions = {}
    for annotation, structures in prepared.structures_ml.items():
        names = [structure.name for structure in schemas[annotation].structures if structure.kind == "lesion"]
        if names:
            lesions[annotation] = sum(structures.get(name, 0.0) for name in names)
    return Volumes(prepared.brain_ml, lesions)


def case_reports(
    files: DatabaseFiles, outcomes: Mapping[str, str], volumes: Mapping[str, Volumes], findings: Iterable[Finding]
) -> tuple[CaseReport, ...]:
    """The reports of a database's cases in their order, then of those whose files do not make up a case.

    Args:
        outcomes: by case; a case without an outcome is not reported.
        volumes: by case, for those that were prepared.
    """
    by_case = by_name(findings, lambda finding: finding.case)
    cases = {case.case: case for case in files.cases}
    root = _common_folder(files.cases)
    severities = list(Severity)
    reports = []
    names = [name for name in cases if name in outcomes] + [name for name in outcomes if name not in cases]
    for name in names:
        own_findings = sorted(by_case.get(name, ()), key=lambda finding: severities.index(finding.severity))
        case_volumes = volumes.get(name, Volumes(math.nan, {}))
        roles = cases[name].by_role if name in cases else {}
        reports.append(
            CaseReport(
                files.name, name, outcomes[name],
                files={role: _shown(file, root) for role, file in roles.items()},
                brain_ml=case_volumes.brain_ml, lesions_ml=case_volumes.lesions_ml,
                codes=tuple(dict.fromkeys(finding.code for finding in own_findings)),
                is_doubtful=any(finding.severity is not Severity.NOTE for finding in own_findings),
            )
        )  # fmt: skip
    return tuple(reports)


def _common_folder(cases: Iterable[CaseFiles]) -> Path:
    folders = {path.parent.absolute() for case in cases for path in case.paths}
    return Path(os.path.commonpath(folders)) if folders else Path()


def _shown(file: LabelFile, root: Path) -> str:
    """A file's name relative to `root`, with the number of the volume or of the slices."""
    folder = paths_of(file)[0].parent.absolute()
    name = f"{folder.name} ({len(paths_of(file))} slices)" if isinstance(file, Series) else file.name
    place = folder.parent if isinstance(file, Series) else folder
    return (place.relative_to(root) / name).as_posix() if place.is_relative_to(root) else name
