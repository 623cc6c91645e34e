"""Put DICOM volumes together to studies: each is a case, with only the ID, age and sex of the patient."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.formats.dicom_series import Slice
from multiseg.store.sources import dicom_scans as dicom
from multiseg.store.sources.source_types import Row, finding

YEARS_OF = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}


@dataclass(frozen=True, eq=False)
class Study:
    """One patient's visit to the scanner. `has_id`: the patient's name is an ID, not a folder's name."""

    case: str
    subject: str
    session: str
    has_id: bool
    scans: tuple[dicom.Scan, ...]

    @property
    def folders(self) -> set[Path]:
        """The folders of its files."""
        return {item.path.parent for scan in self.scans for item in scan.slices}


def studies_of(root: Path, slices: Sequence[Slice]) -> dict[str, Study]:
    """The studies by case: the patient's ID and the date, and a number if there were several that day.

    Raises:
        SourceError: the IDs of two patients differ only in characters that a name cannot have.
    """
    groups: dict[tuple[str, str, str], list[Slice]] = {}
    for item in slices:
        subject = item.tags.get(dicom.PATIENT) or _folder_of(root, item.path)
        date = item.tags.get(dicom.STUDY_DATE, "")
        groups.setdefault((subject, date, item.tags.get(dicom.STUDY) or str(item.path.parent)), []).append(item)
    plain = _plain_names(sorted({subject for subject, _, _ in groups}))
    studies: dict[str, Study] = {}
    in_order = sorted(groups, key=lambda key: (key[:2], dicom.order_of(groups[key], dicom.STUDY_TIME, dicom.STUDY)))
    for subject, date, study in in_order:
        group = groups[subject, date, study]
        name = "_".join(filter(None, (plain[subject], re.sub(r"\D", "", date))))
        numbered = (f"{name}_{number}" for number in range(2, len(groups) + 1))
        case = next(candidate for candidate in (name, *numbered) if candidate not in studies)
        has_id = bool(group[0].tags.get(dicom.PATIENT))
        studies[case] = Study(case, plain[subject], re.sub(r"\D", "", date), has_id, tuple(dicom.scans_of(group)))
    return studies


def participants_of(studies: dict[str, Study]) -> dict[str, Row]:
    """Age in years and sex of every case; {} if no header has them."""
    rows: dict[str, Row] = {}
    for case, study in studies.items():
        age, sex = study.scans[0].tag(dicom.AGE), study.scans[0].tag(dicom.SEX)
        rows[case] = {"age": _years(age), "sex": sex if sex in ("F", "M", "O") else ""}
    return rows if any(row["sex"] or row["age"] == row["age"] for row in rows.values()) else {}


def patient_findings(studies: dict[str, Study]) -> Iterator[Finding]:
    """Warnings of patients without an ID, and of IDs that may be of two patients."""
    unnamed = sorted({study.subject for study in studies.values() if not study.has_id})
    if unnamed:
        message = (
            f"{len(unnamed)} patients have no PatientID and are named by their folders, such as {unnamed[0]!r}. "
            "Is every folder one patient?"
        )
        yield finding(Severity.WARNING, "NO_PATIENT_ID", message)
    subjects: dict[str, set[tuple[str, str]]] = {}
    for study in studies.values():
        for tag, what in ((dicom.SEX, "sex"), (dicom.BIRTH, "date of birth")):
            values = {item.tags[tag] for scan in study.scans for item in scan.slices if item.tags.get(tag)}
            subjects.setdefault(study.subject, set()).update((what, value) for value in values)
    first_case = {study.subject: study.case for study in reversed(studies.values())}
    for subject, facts in subjects.items():
        differing = [what for what in ("sex", "date of birth") if sum(fact[0] == what for fact in facts) > 1]
        if differing:
            message = f"patient {subject!r} has more than one {' and '.join(differing)}. Are these two patients?"
            yield finding(Severity.WARNING, "TWO_PATIENTS", message, first_case[subject])


def _folder_of(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else root.resolve().name


def _plain_names(subjects: Sequence[str]) -> dict[str, str]:
    plain = {subject: re.sub(r"[/\\^\s]+", "-", subject).strip(".-") or "unnamed" for subject in subjects}
    owners: dict[str, str] = {}
    for subject, name in plain.items():
        if owners.setdefault(name, subject) != subject:
            message = f"the patients {owners[name]!r} and {subject!r} would both be named {name!r}. Rename one."
            raise SourceError(message, code="BAD_NAME")
    return plain


def _years(text: str) -> float:
    """An age such as "045Y" or "006M" in years."""
    found = re.fullmatch(r"(\d+)([YMWD])", text.strip().upper())
    return round(int(found[1]) * YEARS_OF[found[2]], 2) if found else float("nan")
