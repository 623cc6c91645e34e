"""DICOM as scanners and archives export it: any folders and names; the headers tell which file is what.

A case is a study, called PatientID_StudyDate. Which sequence a series shows is guessed (`sequence`), and nothing
is done before a person has seen the guesses. Of a patient ID, age and sex are kept; names are never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multiseg.errors import SourceError
from multiseg.faults import check_machine
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_folder import Folder, listed
from multiseg.store.sources.source_types import REAL_NAMES, Found, Layout, Role, SourceOptions

if TYPE_CHECKING:
    from multiseg.store.sources.dicom_choice import Choice
    from multiseg.store.sources.dicom_studies import Study

SUFFIXES = ("", ".dcm", ".ima", ".dicom", ".dic")
MAGIC = b"DICM"
LOOKED_AT = 50
"""So many files are opened to recognise a folder."""
CLASS_TAG = b"\x02\x00\x02\x00UI"
"""The element of the file's own header that names its class; it is always written in this way."""
NOT_SCANS = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG (segmentation)",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT (contours)",
    "1.2.840.10008.5.1.4.1.1.481": "radiotherapy object",
    "1.2.840.10008.5.1.4.1.1.88": "report",
    "1.2.840.10008.5.1.4.1.1.11": "presentation state",
    "1.2.840.10008.5.1.4.1.1.66": "raw data or registration",
    "1.2.840.10008.5.1.4.1.1.104": "document",
    "1.2.840.10008.5.1.4.1.1.9": "waveform",
}
"""DICOM files without a scan in them, by the beginning of their class."""


def _recognise(folder: Folder) -> str:
    names = [file for file in folder.files if _may_be_dicom(file)]
    if len(names) <= len(folder.volumes):
        return ""
    found = next((file for file in names[:LOOKED_AT] if _class_of(folder.path(file)) is not None), "")
    return f"DICOM files such as {found}" if found else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    # ITK takes a quarter of a second to load, which other layouts need not wait for.
    from multiseg.store.sources.dicom_choice import check_spellings, choose, unconfirmed
    from multiseg.store.sources.dicom_scans import read_slices
    from multiseg.store.sources.dicom_studies import participants_of, patient_findings, studies_of

    database = options.name or folder.name
    classes = {file: _class_of(folder.path(file)) for file in folder.files if _may_be_dicom(file)}
    images = [file for file, uid in classes.items() if uid is not None and not _not_a_scan(uid)]
    slices, errors = read_slices(folder.path(file) for file in images)
    if errors and not slices:
        message = f"none of the {len(errors)} DICOM files below {folder.root} can be read. The first: {errors[0]}"
        raise SourceError(message, code=errors[0].code, file=errors[0].file)
    studies = studies_of(folder.root, slices)
    choices = [choose(case, scan, options.modalities) for case, study in studies.items() for scan in study.scans]
    check_spellings(choices, options.modalities)
    if not (options.yes or all(choice.is_said for choice in choices)):
        raise unconfirmed(folder.root, choices, options)
    used = {(choice.case, choice.sequence): choice for choice in reversed(choices) if choice.sequence}
    return Found(
        name=folder.name,
        folder=folder,
        roles=[_role(choice, studies[choice.case]) for choice in choices if choice in used.values()],
        participants=participants_of(studies),
        unused=folder.volumes,
        findings=(
            *_about_files(database, classes),
            *_about_damage(database, errors, studies.values()),
            *patient_findings(database, studies),
            *_about_used(database, [choice for choice in choices if choice.sequence]),
            *_about_rest(database, [choice for choice in choices if not choice.sequence]),
            _about_names(database, studies),
        ),
        source="DICOM",
    )


def _may_be_dicom(file: str) -> bool:
    """Names of DICOM files often end in the last number of an ID."""
    suffix = Path(file).suffix.lower()
    return suffix in SUFFIXES or suffix[1:].isdecimal()


def _class_of(path: Path) -> str | None:
    """The class of a DICOM file; None for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        check_machine(error)
        return None
    if head[128:132] != MAGIC:
        return None
    at = head.find(CLASS_TAG) + len(CLASS_TAG)
    length = int.from_bytes(head[at : at + 2], "little")
    return head[at + 2 : at + 2 + length].decode("ascii", errors="replace").strip("\0 ")


def _not_a_scan(uid: str) -> str:
    """What a file of this class is, if it is no image."""
    kinds = [kind for start, kind in NOT_SCANS.items() if uid == start or uid.startswith(f"{start}.")]
    return kinds[0] if kinds else ""


def _role(choice: Choice, study: Study) -> Role:
    fields = {"subject": study.subject, "session": study.session}
    return Role(choice.case, "image", choice.spelling, choice.scan.checked[0], fields)


def _about_files(database: str, classes: Mapping[str, str | None]) -> list[Finding]:
    findings = []
    named = [file for file, uid in classes.items() if uid is None and Path(file).suffix.lower() in SUFFIXES[1:]]
    if named:
        message = f"{len(named)} files are called DICOM but hold none: {listed(named, 3)}. Copy or export them again."
        findings.append(Finding(Severity.WARNING, "NOT_DICOM", database, "", named[0], message))
    kinds = Counter(_not_a_scan(uid) for uid in classes.values() if uid and _not_a_scan(uid) not in ("", "DICOMDIR"))
    if kinds:
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        message = (
            f"{sum(kinds.values())} DICOM files are no scans and are not read: {counts}. Labels among them have to be "
            "NIfTI files beside NIfTI images; then give both with --pattern and --label."
        )
        findings.append(Finding(Severity.NOTE, "NOT_READ", database, "", "", message))
    return findings


def _about_damage(database: str, errors: Sequence[SourceError], studies: Iterable[Study]) -> list[Finding]:
    """A slice that cannot be read may be the last of a volume that looks whole without it."""
    findings = []
    for error in errors:
        beside = [study.case for study in studies if Path(error.file).parent in study.folders]
        severity = Severity.ERROR if beside else Severity.WARNING
        findings += [Finding(severity, error.code, database, case, error.file, str(error)) for case in beside or [""]]
    return findings


def _about_names(database: str, studies: Mapping[str, Study]) -> Finding:
    """Where the names of the cases come from, before they are in a store that others may see."""
    message = (
        f"cases are called by PatientID and date of the study, such as {min(studies)!r}, and so they are in the "
        "store. To have other names there, and these in a file of your own: --pseudonyms FILE."
    )
    return Finding(Severity.NOTE, REAL_NAMES, database, "", "", message)


def _about_used(database: str, choices: Sequence[Choice]) -> list[Finding]:
    findings = []
    by_sequence: dict[tuple[str, str], list[Choice]] = {}
    for choice in choices:
        by_sequence.setdefault((choice.case, str(choice.sequence)), []).append(choice)
        error = choice.scan.checked[1]
        if error is not None:
            message = f"series {choice.scan.name!r}, taken for {choice.sequence}: {error}"
            findings.append(Finding(Severity.ERROR, error.code, database, choice.case, error.file, message))
    for (case, sequence), some in by_sequence.items():
        if len(some) > 1:
            names = ", ".join(f"{choice.scan.name!r} ({len(choice.scan.slices)} slices)" for choice in some)
            message = (
                f"{len(some)} series of case {case!r} are {sequence}: {names}. Leave out all but one, for instance "
                f'--modality "{some[-1].scan.name}"=skip.'
            )
            findings.append(Finding(Severity.ERROR, "DUPLICATE_CASE", database, case, "", message))
    return findings


def _about_rest(database: str, choices: Sequence[Choice]) -> list[Finding]:
    """Series that are no sequence, by name."""
    groups: dict[tuple[str, str], list[Choice]] = {}
    for choice in choices:
        groups.setdefault((choice.scan.name, choice.why), []).append(choice)
    findings = []
    for (name, why), some in groups.items():
        message = f'series {name!r} is left out ({why}). If it is a sequence, name it: --modality "{name}"=T1.'
        findings += [Finding(Severity.NOTE, "SERIES_LEFT_OUT", database, one.case, "", message) for one in some]
    return findings


DICOM = Layout("dicom", "DICOM files", _recognise, _find)
