"""BIDS: raw scans in `sub-*/ses-*/anat` and `dwi`, labels in `derivatives` or beside them.

https://bids-specification.readthedocs.io - `bids_names` reads the names, `bids_choice` chooses the files of each case,
`bids_labels` finds the meaning of labels, `bids_texts` reads the description and the participants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from multiseg.errors import SourceError, few
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.bids_choice import Choice, Session, choose, scan_of
from multiseg.store.sources.bids_labels import annotations_of
from multiseg.store.sources.bids_names import BidsFile, Kind, bids_files, kind_of, mask_name, sequence_of, why_not_used
from multiseg.store.sources.bids_texts import describe, is_generated_by, participants
from multiseg.store.sources.file_contents import is_4d
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, RoleKind, SourceOptions, finding

_DATATYPES = ("anat", "dwi", "swi")
OURSELVES = "multiseg"
"""Our name in the description of a dataset of predictions."""
_LOW_B = 50
"""An image with a b-value (s/mm^2) below this is practically not diffusion-weighted."""
Reason: TypeAlias = tuple[Severity, str, str]
"""Why files are left out: the severity, the code and the text of the finding."""


def _recognise(folder: Folder) -> str:
    scans = [file for file in bids_files(folder) if file.datatype in _DATATYPES and sequence_of(file)]
    scans = [file for file in scans if kind_of(file) == "image"]
    subjects = {file.subject for file in scans}
    return f"{len(subjects)} subjects with scans such as {scans[0].path}" if subjects else ""


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    files = bids_files(folder)
    root = dataset_root(folder, files)
    sessions, findings, left_out = sort_files(in_their_sessions(files), folder, options)
    choices = [choose(session, folder, options) for session in sessions]
    annotations = annotations_of(choices, folder, options)
    roles = [role for choice in choices for role in _roles(folder, choice, annotations.names)]
    description, doubts = describe(folder, root)
    rows, more_doubts = ({}, ()) if options.participants else participants(folder, root)
    reported = left_out | {file.path for session in sessions for file in session.all}
    return FoundFiles(
        folder=folder,
        roles=roles,
        schemas=annotations.schemas,
        required=annotations.required,
        skipped=_skipped(sessions, options),
        participants=rows,
        unused=[file for file in folder.unused(role.file for role in roles) if file not in reported],
        findings=(
            *findings,
            *(doubt for choice in choices for doubt in choice.findings),
            *annotations.findings,
            *_choice_findings(sessions, choices),
            *doubts,
            *more_doubts,
        ),
        **description,
    )


def dataset_root(folder: Folder, files: Sequence[BidsFile]) -> str:
    """The folder of the raw dataset; `rawdata/` and `derivatives/` may be in the same folder.

    Raises:
        SourceError: there are several datasets, whose subjects could be confused.
    """
    above = sorted({f"/{file.above}".partition("/derivatives/")[0].strip("/") for file in files})
    datasets = {text.removesuffix("rawdata").removesuffix("sourcedata").strip("/") for text in above}
    if len(datasets) > 1:
        names = few([name or "." for name in sorted(datasets)])
        message = f"{folder.root} has {len(datasets)} BIDS datasets ({names}). Ingest each separately."
        raise SourceError(message, code="SEVERAL_DATASETS", file=str(folder.root))
    raw = [file.above for file in files if not file.pipeline and "sourcedata" not in file.above]
    return raw[0] if raw else ""


def in_their_sessions(files: Sequence[BidsFile]) -> list[BidsFile]:
    """The files, where a label without ses- gets its subject's session if there is only one."""
    sessions: dict[str, set[str]] = {}
    for file in files:
        if not file.pipeline and kind_of(file) == "image":
            sessions.setdefault(file.subject, set()).add(file.session)
    only = {subject: min(names) for subject, names in sessions.items() if len(names) == 1}
    return [file if file.session else replace(file, session=only.get(file.subject, "")) for file in files]


def sort_files(
    files: Sequence[BidsFile], folder: Folder, options: SourceOptions
) -> tuple[list[Session], list[Finding], set[str]]:
    """Files by session and kind, findings, and the files that are left out."""
    findings = list(_check_folders(files))
    by_case: dict[str, dict[Kind, list[BidsFile]]] = {}
    reasons: dict[Reason, list[str]] = {}
    predicted = {above for above in {file.above for file in files} if is_generated_by(folder, above, OURSELVES)}
    for file in files:
        kind, reason = _kind(file, folder, options)
        if file.above in predicted:
            reason = (Severity.NOTE, "LEFT_OUT", "multiseg predicted it, which is no annotation to learn from")
        if reason:
            reasons.setdefault(reason, []).append(file.path)
        else:
            by_case.setdefault(file.case, {}).setdefault(kind, []).append(file)
    for (severity, code, why), paths in reasons.items():
        message = f"{len(paths)} files are left out, such as {paths[0]}: {why}."
        findings.append(finding(severity, code, message, file=paths[0]))
    sessions = [Session(case, kinds) for case, kinds in sorted(by_case.items())]
    return sessions, findings, {path for paths in reasons.values() for path in paths}


def _check_folders(files: Sequence[BidsFile]) -> Iterator[Finding]:
    """Errors for files whose name and folder disagree on the subject or session."""
    for file in files:
        subject, session = f"sub-{file.entities.get('sub')}", file.entities.get("ses")
        if subject != file.subject or (session and file.session and f"ses-{session}" != file.session):
            message = f"{file.path} is in the folder of another subject or session than its name says. Which is right?"
            yield finding(Severity.ERROR, "WRONG_FOLDER", message, file.case, file.path)


def _kind(file: BidsFile, folder: Folder, options: SourceOptions) -> tuple[Kind, Reason | None]:
    """What a file is, and the reason if it is left out."""
    kind = kind_of(file)
    if kind == "other mask":
        kind = _kind_of_mask(file, folder, options)
    if kind == "other mask":
        name = mask_name(file)
        why = f'the meaning of {name!r} is unknown. To use it as an annotation: --labels "{name}:1=NAME"'
        return kind, (Severity.WARNING, "UNKNOWN_MASK", why)
    if kind == "image" and file.suffix.lower() == "dwi" and (why := _why_not_weighted(folder, file)):
        return kind, (Severity.WARNING, "DIFFUSION_SERIES", why)
    why = why_not_used(file)
    return kind, (Severity.NOTE, "LEFT_OUT", why) if why else None


def _kind_of_mask(file: BidsFile, folder: Folder, options: SourceOptions) -> Kind:
    if mask_name(file) in options.codes:
        return "segmentation"
    kinds: dict[str, Kind] = {"Lesion": "lesion mask", "Brain": "brain mask"}
    try:
        metadata = json.loads(_read_sidecar(folder, file, ".json"))
    except ValueError:
        return "other mask"
    return kinds.get(str(metadata.get("Type", "")) if isinstance(metadata, dict) else "", "other mask")


def _why_not_weighted(folder: Folder, file: BidsFile) -> str:
    """Why a diffusion file is not one diffusion-weighted image, or ""."""
    if is_4d(folder.path(file.path)):
        return (
            "a series of diffusion directions is not one diffusion-weighted image. Add its trace, with the suffix trace"
        )
    try:
        weightings = [float(text) for text in _read_sidecar(folder, file, ".bval").split()]
    except ValueError:
        return ""
    return "its b-value says that it is not diffusion-weighted" if weightings and max(weightings) < _LOW_B else ""


def _read_sidecar(folder: Folder, file: BidsFile, suffix: str) -> str:
    """The text of the file with the same name and another suffix, "" if there is none."""
    path = file.path.removesuffix(".gz").removesuffix(".zarr").removesuffix(".nii") + suffix
    return folder.path(path).read_text(encoding="utf-8-sig", errors="replace") if folder.path(path).is_file() else ""


def _skipped(sessions: Sequence[Session], options: SourceOptions) -> set[str]:
    """The cases whose scans the user skips, all of them."""
    scans = {session.case: session.of("image") for session in sessions}
    return {case for case, files in scans.items() if files and all(scan_of(file, options) is None for file in files)}


def _roles(folder: Folder, choice: Choice, annotations: Mapping[str, str]) -> list[Role]:
    def role(kind: RoleKind, name: str, file: BidsFile, doubt: str = "") -> Role:
        fields = {"subject": file.subject, "session": file.session}
        return Role(choice.case, kind, name, folder.path(file.path), fields, doubt=doubt)

    labels = [file for file in (*choice.lesions, *choice.segmentations) if file.path in annotations]
    return [
        *(role("image", scan.name, scan.file, scan.doubt) for scan in choice.scans),
        *(role("label", annotations[file.path], file) for file in labels),
        *(role("brain mask", "brain mask", file) for file in (choice.brain,) if file is not None),
    ]


def _choice_findings(sessions: Sequence[Session], choices: Sequence[Choice]) -> Iterator[Finding]:
    """Which scans and labels were chosen, and by which rule."""
    derived = [file for session in sessions for file in session.of("image") if file.pipeline]
    preprocessed = [choice for choice in choices if choice.is_preprocessed]
    if derived:
        message = (
            f"raw scans are used for {len(choices) - len(preprocessed)} cases, preprocessed ones for "
            f"{len(preprocessed)}: those in a template's space if all labels of a case are there, else raw scans."
        )
        yield finding(Severity.NOTE, "RAW_OR_PREPROCESSED", message, file=derived[0].path)
    for session, choice in zip(sessions, choices, strict=True):
        if choice.is_preprocessed and (lost := _lost_sequences(session, choice)):
            message = (
                f"case {choice.case!r} has its labels in a template's space, but {', '.join(lost)} only in the "
                "patient's own space, so it is left out. Bring both to one space."
            )
            yield finding(Severity.WARNING, "SEQUENCE_LOST", message, choice.case)
    labels = [file for s in sessions for kind in ("lesion mask", "segmentation") for file in s.of(kind)]
    used = {file.path for choice in choices for file in (*choice.lesions, *choice.segmentations)}
    other = [file.path for file in labels if file.path not in used]
    if other:
        message = f"{len(other)} labels are left out because they are in another space than the scans: "
        yield finding(Severity.NOTE, "OTHER_SPACE", f"{message}{few(other, 3)}.", file=other[0])


def _lost_sequences(session: Session, choice: Choice) -> list[str]:
    """The raw sequences that are missing in the space of a case's labels."""
    raw = {sequence_of(file) for file in session.of("image") if not file.pipeline}
    return sorted(name for name in raw - {scan.sequence for scan in choice.scans} if name)


BIDS = Layout("bids", "BIDS", _recognise, _find)
