"""DICOM as scanners and archives export it: folders and names do not matter; the headers say what each file is.

A case is a study, called PatientID_StudyDate. The sequence of a series is guessed (`sequence`), and a person has to
confirm the guesses first. A patient's ID, age and sex are kept; names are never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multiseg.errors import SourceError, few
from multiseg.faults import check_machine
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_folder import Folder, grouped
from multiseg.store.sources.source_types import REAL_NAMES, FoundFiles, Layout, Role, SourceOptions, finding

if TYPE_CHECKING:
    from multiseg.store.sources.dicom_choice import Choice
    from multiseg.store.sources.dicom_studies import Study

SUFFIXES = ("", ".dcm", ".ima", ".dicom", ".dic")
MAGIC = b"DICM"
MAX_OPENED = 50
"""The number of files that are opened to recognise a folder."""
CLASS_TAG = b"\x02\x00\x02\x00UI"
"""The start of the element that names the file's class; the encoding of the file's own header never varies."""
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
"""DICOM files without a scan, by the beginning of their class."""


def _recognise(folder: Folder) -> str:
    names = [file for file in folder.files if _may_be_dicom(file)]
    if len(names) <= len(folder.volumes):
        return ""
    found = next((file for file in names[:MAX_OPENED] if _class_of(folder.path(file)) is not None), "")
    return f"DICOM files such as {found}" if found else ""


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    # ITK takes a quarter of a second to load, which other layouts should not wait for.
    from multiseg.store.sources.dicom_choice import check_spellings, choose, unconfirmed
    from multiseg.store.sources.dicom_scans import read_slices
    from multiseg.store.sources.dicom_studies import participants_of, patient_findings, studies_of

    classes = {file: _class_of(folder.path(file)) for file in folder.files if _may_be_dicom(file)}
    images = [file for file, uid in classes.items() if uid is not None and not _not_a_scan(uid)]
    slices, errors = read_slices(folder.path(file) for file in images)
    if errors and not slices:
        message = f"none of the {len(errors)} DICOM files in {folder.root} can be read. The first: {errors[0]}"
        raise SourceError(message, code=errors[0].code, file=errors[0].file)
    studies = studies_of(folder.root, slices)
    choices = [choose(case, scan, options.modalities) for case, study in studies.items() for scan in study.scans]
    check_spellings(choices, options.modalities)
    if not (options.yes or all(choice.is_named for choice in choices)):
        raise unconfirmed(folder.root, choices, options)
    used = {(choice.case, choice.sequence): choice for choice in reversed(choices) if choice.sequence}
    return FoundFiles(
        folder=folder,
        roles=[_role(choice, studies[choice.case]) for choice in choices if choice in used.values()],
        participants=participants_of(studies),
        unused=folder.volumes,
        findings=(
            *_check_files(classes),
            *_check_damage(errors, studies.values()),
            *patient_findings(studies),
            *_check_used([choice for choice in choices if choice.sequence]),
            *_note_unused([choice for choice in choices if not choice.sequence]),
            _note_names(studies),
        ),
        source="DICOM",
    )


def _may_be_dicom(file: str) -> bool:
    """Whether a name may be that of a DICOM file; many end in the last number of an ID."""
    suffix = Path(file).suffix.lower()
    return suffix in SUFFIXES or suffix[1:].isdecimal()


def _class_of(path: Path) -> str | None:
    """The class of a DICOM file (its SOP class UID); None for other files."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        check_machine(error)
        return None
    if head[128:132] != MAGIC:
        return None
    start = head.find(CLASS_TAG) + len(CLASS_TAG)
    length = int.from_bytes(head[start : start + 2], "little")
    return head[start + 2 : start + 2 + length].decode("ascii", errors="replace").strip("\0 ")


def is_scan(path: Path) -> bool:
    """Whether a file is a DICOM image."""
    uid = _class_of(path)
    return uid is not None and not _not_a_scan(uid)


def _not_a_scan(uid: str) -> str:
    """What a file of this class is if it is not a scan; "" for a scan."""
    kinds = [kind for start, kind in NOT_SCANS.items() if uid == start or uid.startswith(f"{start}.")]
    return kinds[0] if kinds else ""


def _role(choice: Choice, study: Study) -> Role:
    fields = {"subject": study.subject, "session": study.session}
    return Role(choice.case, "image", choice.spelling, choice.scan.checked[0], fields)


def _check_files(classes: Mapping[str, str | None]) -> Iterator[Finding]:
    named = [file for file, uid in classes.items() if uid is None and Path(file).suffix.lower() in SUFFIXES[1:]]
    if named:
        message = f"{len(named)} files are named as DICOM but are not: {few(named, 3)}. Export them again."
        yield finding(Severity.WARNING, "NOT_DICOM", message, file=named[0])
    kinds = Counter(_not_a_scan(uid) for uid in classes.values() if uid and _not_a_scan(uid) not in ("", "DICOMDIR"))
    if kinds:
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        message = (
            f"{sum(kinds.values())} DICOM files are not scans and are not read: {counts}. If there are labels among "
            "them, convert labels and images to NIfTI, and use --pattern and --label."
        )
        yield finding(Severity.NOTE, "NOT_READ", message)


def _check_damage(errors: Sequence[SourceError], studies: Iterable[Study]) -> list[Finding]:
    """Files that cannot be read: an error for a case with files in that folder, which may lack a slice."""
    findings = []
    for error in errors:
        cases = [study.case for study in studies if Path(error.file).parent in study.folders]
        severity = Severity.ERROR if cases else Severity.WARNING
        findings += [finding(severity, error.code, str(error), case, error.file) for case in cases or [""]]
    return findings


def _note_names(studies: Mapping[str, Study]) -> Finding:
    """A note that cases are named by patient IDs, before they are in a store that others may see."""
    message = (
        f"cases are named by PatientID and study date, such as {min(studies)!r}, also in the store. To store "
        "pseudonyms instead, and keep these names in a separate file: --pseudonyms FILE."
    )
    return finding(Severity.NOTE, REAL_NAMES, message)


def _check_used(choices: Sequence[Choice]) -> Iterator[Finding]:
    for choice in choices:
        error = choice.scan.checked[1]
        if error is not None:
            message = f"series {choice.scan.name!r}, used as {choice.sequence}: {error}"
            yield finding(Severity.ERROR, error.code, message, choice.case, error.file)
    for (case, sequence), candidates in grouped(choices, lambda choice: (choice.case, choice.sequence)).items():
        if len(candidates) > 1:
            names = ", ".join(f"{choice.scan.name!r} ({len(choice.scan.slices)} slices)" for choice in candidates)
            message = (
                f"{len(candidates)} series of case {case!r} are {sequence}: {names}. Leave out all but one, for "
                f'instance --modality "{candidates[-1].scan.name}"=skip.'
            )
            yield finding(Severity.ERROR, "DUPLICATE_CASE", message, case)


def _note_unused(choices: Sequence[Choice]) -> Iterator[Finding]:
    """A note for each series that is not used."""
    for (name, why), left_out in grouped(choices, lambda choice: (choice.scan.name, choice.why)).items():
        message = f'series {name!r} is left out ({why}). If it is a sequence, name it: --modality "{name}"=T1.'
        for choice in left_out:
            yield finding(Severity.NOTE, "SERIES_LEFT_OUT", message, choice.case)


DICOM = Layout("dicom", "DICOM files", _recognise, _find)
