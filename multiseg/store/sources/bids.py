"""BIDS: raw scans in `sub-*/ses-*/anat` and `dwi`, labels in `derivatives` or beside them.

https://bids-specification.readthedocs.io - `bids_names` reads the names, `bids_sorting` sorts the files into sessions,
`bids_choice` says which of them become a case, `bids_labels` what labels mean, `bids_texts` what the dataset says of
itself and of its people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.bids_choice import Choice, Session, choose, scan_of
from multiseg.store.sources.bids_labels import annotations_of
from multiseg.store.sources.bids_names import BidsFile, bids_files, kind_of, sequence_of
from multiseg.store.sources.bids_sorting import Sorting, dataset_root, in_their_sessions
from multiseg.store.sources.bids_texts import describe, participants
from multiseg.store.sources.folder import Folder, listed
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions, unused_volumes

_DATATYPES = ("anat", "dwi", "swi")


def _recognise(folder: Folder) -> str:
    scans = [file for file in bids_files(folder) if file.datatype in _DATATYPES and sequence_of(file)]
    scans = [file for file in scans if kind_of(file) == "image"]
    subjects = {file.subject for file in scans}
    return f"{len(subjects)} subjects with scans such as {scans[0].path}" if subjects else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    database = options.name or folder.name
    files = bids_files(folder)
    root = dataset_root(folder, files)
    sorting = Sorting(folder, options)
    sessions = sorting.sessions(in_their_sessions(files))
    choices = [choose(session, folder, options) for session in sessions]
    annotations = annotations_of(choices, folder, options)
    roles = [role for choice in choices for role in _roles(folder, choice, annotations.names)]
    description, doubts = describe(folder, root, database)
    rows, more_doubts = ({}, ()) if options.participants else participants(folder, root, database)
    spoken_of = sorting.left_out | {file.path for session in sessions for file in session.all}
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas=annotations.schemas,
        required=annotations.required,
        skipped=_skipped(sessions, options),
        participants=rows,
        unused=[file for file in unused_volumes(folder, roles) if file not in spoken_of],
        findings=(
            *sorting.findings,
            *(finding for choice in choices for finding in choice.findings),
            *annotations.findings,
            *_rules(database, sessions, choices),
            *doubts,
            *more_doubts,
        ),
        licence=description.licence,
        citation=description.citation,
        source=description.source,
    )


def _skipped(sessions: Sequence[Session], options: SourceOptions) -> set[str]:
    """The cases of which the user leaves every scan out."""
    scans = {session.case: session.of("image") for session in sessions}
    return {case for case, own in scans.items() if own and all(scan_of(file, options) is None for file in own)}


def _roles(folder: Folder, choice: Choice, annotations: Mapping[str, str]) -> list[Role]:
    def role(kind: Literal["image", "label", "brain mask"], name: str, file: BidsFile, doubt: str = "") -> Role:
        fields = {"subject": file.subject, "session": file.session}
        return Role(choice.case, kind, name, folder.path(file.path), fields, doubt=doubt)

    labels = [file for file in (*choice.lesions, *choice.segmentations) if file.path in annotations]
    return [
        *(role("image", scan.name, scan.file, scan.doubt) for scan in choice.scans),
        *(role("label", annotations[file.path], file) for file in labels),
        *(role("brain mask", "brain mask", file) for file in (choice.brain,) if file is not None),
    ]


def _rules(database: str, sessions: Sequence[Session], choices: Sequence[Choice]) -> list[Finding]:
    """Which scans and labels were taken where there was a choice, and by which rule."""
    findings: list[Finding] = []
    derived = [file for session in sessions for file in session.of("image") if file.pipeline]
    moved = [choice for choice in choices if choice.is_preprocessed]
    if derived:
        message = (
            f"raw scans are taken for {len(choices) - len(moved)} cases, preprocessed ones for {len(moved)}. The rule: "
            "raw scans, unless all labels of a case lie in a template's space, and then the scans in that space."
        )
        findings.append(Finding(Severity.NOTE, "RAW_OR_PREPROCESSED", database, "", derived[0].path, message))
    for session, choice in zip(sessions, choices, strict=True):
        findings += _lost(database, session, choice)
    labels = [file for s in sessions for kind in ("lesion mask", "segmentation") for file in s.of(kind)]
    taken = {file.path for choice in choices for file in (*choice.lesions, *choice.segmentations)}
    other = [file.path for file in labels if file.path not in taken]
    if other:
        message = (
            f"{len(other)} labels are left out, since they lie in another space than the scans: {listed(other, 3)}."
        )
        findings.append(Finding(Severity.NOTE, "OTHER_SPACE", database, "", other[0], message))
    return findings


def _lost(database: str, session: Session, choice: Choice) -> list[Finding]:
    """Raw sequences that a case has no counterpart of in the space of its labels."""
    raw = {sequence_of(file) for file in session.of("image") if not file.pipeline}
    lost = sorted(name for name in raw - {scan.sequence for scan in choice.scans} if name)
    if not (choice.is_preprocessed and lost):
        return []
    message = (
        f"case {choice.case!r} has its labels in a template's space, and {', '.join(lost)} only as it was scanned: "
        "left out. Give it, or the labels, in the other's space."
    )
    return [Finding(Severity.WARNING, "SEQUENCE_LOST", database, choice.case, "", message)]


BIDS = Layout("bids", "BIDS", _recognise, _find)
