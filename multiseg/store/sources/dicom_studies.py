"""From DICOM volumes to studies: a case each, with its patient's ID, age and sex and nothing else of a patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.formats.dicom_series import Slice
from multiseg.store.sources.dicom_scans import (
    AGE,
    BIRTH,
    PATIENT,
    SEX,
    STUDY,
    STUDY_DATE,
    STUDY_TIME,
    Scan,
    number_in,
    scans_of,
)
from multiseg.store.sources.source_types import Row

YEARS_OF = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}


@dataclass(frozen=True, eq=False)
class Study:
    """One patient's visit to the scanner. `has_id`: the patient is named by an ID and not by a folder."""

    case: str
    subject: str
    session: str
    has_id: bool
    scans: tuple[Scan, ...]

    @property
    def folders(self) -> set[Path]:
        """Where its files lie."""
        return {one.path.parent for scan in self.scans for one in scan.slices}


def studies_of(root: Path, slices: Sequence[Slice]) -> dict[str, Study]:
    """The studies by their case: the patient's ID and the date, and a number where there were two that day.

    Raises:
        SourceError: two patients' IDs differ only in what a name cannot hold.
    """
    groups: dict[tuple[str, str, str], list[Slice]] = {}
    for one in slices:
        subject = one.tags.get(PATIENT) or _folder_of(root, one.path)
        date = one.tags.get(STUDY_DATE, "")
        groups.setdefault((subject, date, one.tags.get(STUDY) or str(one.path.parent)), []).append(one)
    plain = _plain_names(sorted({subject for subject, _, _ in groups}))
    studies: dict[str, Study] = {}
    for (subject, date, _), own in sorted(groups.items(), key=lambda item: (item[0][:2], _scanned(item[1]))):
        name = "_".join(filter(None, (plain[subject], re.sub(r"\D", "", date))))
        number = next(n for n in range(1, len(groups) + 2) if (name if n == 1 else f"{name}_{n}") not in studies)
        case = name if number == 1 else f"{name}_{number}"
        has_id = bool(own[0].tags.get(PATIENT))
        studies[case] = Study(case, plain[subject], re.sub(r"\D", "", date), has_id, tuple(scans_of(own)))
    return studies


def participants_of(studies: dict[str, Study]) -> dict[str, Row]:
    """Age in years and sex of every case, where its headers tell."""
    rows: dict[str, Row] = {}
    for case, study in studies.items():
        age, sex = study.scans[0].tag(AGE), study.scans[0].tag(SEX)
        rows[case] = {"age": _years(age), "sex": sex if sex in ("F", "M", "O") else ""}
    return rows if any(row["sex"] or row["age"] == row["age"] for row in rows.values()) else {}


def patient_findings(database: str, studies: dict[str, Study]) -> list[Finding]:
    """Patients without ID, and IDs that seem to be of two patients."""
    findings = []
    unnamed = sorted({study.subject for study in studies.values() if not study.has_id})
    if unnamed:
        message = (
            f"{len(unnamed)} patients have no PatientID and are called by their folders, such as {unnamed[0]!r}. "
            "Is every folder one person?"
        )
        findings.append(Finding(Severity.WARNING, "NO_PATIENT_ID", database, "", "", message))
    subjects: dict[str, set[tuple[str, str]]] = {}
    for study in studies.values():
        for tag, what in ((SEX, "sex"), (BIRTH, "date of birth")):
            values = {one.tags[tag] for scan in study.scans for one in scan.slices if one.tags.get(tag)}
            subjects.setdefault(study.subject, set()).update((what, value) for value in values)
    first_case = {study.subject: study.case for study in reversed(studies.values())}
    for subject, facts in subjects.items():
        twice = [what for what in ("sex", "date of birth") if sum(fact[0] == what for fact in facts) > 1]
        if twice:
            message = f"the files of patient {subject!r} give more than one {' and '.join(twice)}. Are they two people?"
            findings.append(Finding(Severity.WARNING, "TWO_PATIENTS", database, first_case[subject], "", message))
    return findings


def _scanned(slices: Sequence[Slice]) -> tuple[float, str]:
    tags = slices[0].tags
    return number_in(tags.get(STUDY_TIME, "")) or 0.0, tags.get(STUDY, "")


def _folder_of(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else root.resolve().name


def _plain_names(subjects: Sequence[str]) -> dict[str, str]:
    plain = {subject: re.sub(r"[/\\^\s]+", "-", subject).strip(".-") or "unnamed" for subject in subjects}
    owners: dict[str, str] = {}
    for subject, name in plain.items():
        if owners.setdefault(name, subject) != subject:
            message = f"the patients {owners[name]!r} and {subject!r} would both be called {name!r}. Rename one."
            raise SourceError(message, code="BAD_NAME")
    return plain


def _years(text: str) -> float:
    """An age such as "045Y" or "006M" in years."""
    found = re.fullmatch(r"(\d+)([YMWD])", text.strip().upper())
    return round(int(found[1]) * YEARS_OF[found[2]], 2) if found else float("nan")
