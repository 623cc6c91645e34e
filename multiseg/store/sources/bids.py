"""BIDS: raw scans in `sub-*/ses-*/anat` and `dwi`, labels in `derivatives` or beside them.

https://bids-specification.readthedocs.io - `bids_names` reads the names, `bids_choice` says which files become a case,
`bids_labels` what labels mean, `bids_texts` what the dataset says of itself and of its people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.bids_choice import Choice, Session, choose, scan_of
from multiseg.store.sources.bids_labels import annotations_of
from multiseg.store.sources.bids_names import (
    BidsFile,
    Kind,
    bids_files,
    kind_of,
    mask_name,
    sequence_of,
    why_not_used,
)
from multiseg.store.sources.bids_texts import describe, participants
from multiseg.store.sources.file_contents import is_4d
from multiseg.store.sources.source_folder import Folder, listed
from multiseg.store.sources.source_types import Found, Layout, Role, SourceOptions, unused_volumes

_DATATYPES = ("anat", "dwi", "swi")
_LOW_B = 50
"""Diffusion weightings below this (s/mm^2) leave an image all but unweighted."""


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


def dataset_root(folder: Folder, files: Sequence[BidsFile]) -> str:
    """The folder of the raw dataset; `rawdata/` and `derivatives/` may lie side by side.

    Raises:
        SourceError: there are several datasets, whose subjects would be taken for each other.
    """
    above = sorted({f"/{file.above}".partition("/derivatives/")[0].strip("/") for file in files})
    datasets = {text.removesuffix("rawdata").removesuffix("sourcedata").strip("/") for text in above}
    if len(datasets) > 1:
        names = listed([name or "." for name in sorted(datasets)])
        message = (
            f"{folder.root} holds {len(datasets)} BIDS datasets ({names}), whose subjects may share names. Ingest each."
        )
        raise SourceError(message, code="SEVERAL_DATASETS", file=str(folder.root))
    raw = [file.above for file in files if not file.pipeline and "sourcedata" not in file.above]
    return raw[0] if raw else ""


def in_their_sessions(files: Sequence[BidsFile]) -> list[BidsFile]:
    """A label without ses- belongs to the subject's only session."""
    sessions: dict[str, set[str]] = {}
    for file in files:
        if not file.pipeline and kind_of(file) == "image":
            sessions.setdefault(file.subject, set()).add(file.session)
    only = {subject: min(own) for subject, own in sessions.items() if len(own) == 1}
    return [file if file.session else replace(file, session=only.get(file.subject, "")) for file in files]


class Sorting:
    """Sorts files by session and by what they are; what is left out gathers in `findings` and `left_out`."""

    def __init__(self, folder: Folder, options: SourceOptions) -> None:
        self.folder = folder
        self.options = options
        self.findings: list[Finding] = []
        self.left_out: set[str] = set()

    def sessions(self, files: Sequence[BidsFile]) -> list[Session]:
        by_case: dict[str, dict[Kind, list[BidsFile]]] = {}
        reasons: dict[tuple[Severity, str, str], list[str]] = {}
        for file in files:
            self._check_folder(file)
            kind, severity, code, why = self._kind(file)
            if why:
                reasons.setdefault((severity, code, why), []).append(file.path)
            else:
                by_case.setdefault(file.case, {}).setdefault(kind, []).append(file)
        for (severity, code, why), paths in reasons.items():
            message = f"{len(paths)} files are left out, such as {paths[0]}: {why}."
            self._find(severity, code, "", paths[0], message)
            self.left_out |= set(paths)
        return [Session(case, kinds) for case, kinds in sorted(by_case.items())]

    def _find(self, severity: Severity, code: str, case: str, file: str, message: str) -> None:
        self.findings.append(Finding(severity, code, self.options.name or self.folder.name, case, file, message))

    def _check_folder(self, file: BidsFile) -> None:
        """A scan of one person in the folder of another."""
        said = (f"sub-{file.entities.get('sub')}", file.entities.get("ses"))
        if said[0] != file.subject or (said[1] and file.session and f"ses-{said[1]}" != file.session):
            message = f"{file.path} lies in the folder of another subject or session than its name says. Whose is it?"
            self._find(Severity.ERROR, "WRONG_FOLDER", file.case, file.path, message)

    def _kind(self, file: BidsFile) -> tuple[Kind, Severity, str, str]:
        """What a file is; the last text says why it is left out."""
        kind = kind_of(file)
        if kind == "other mask":
            kind = self._kind_of_mask(file)
        if kind == "other mask":
            name = mask_name(file)
            why = f'what does {name!r} mark? If it is to be an annotation, say: --labels "{name}:1=NAME"'
            return kind, Severity.WARNING, "UNKNOWN_MASK", why
        if kind == "image" and file.suffix.lower() == "dwi" and (why := _why_no_trace(self.folder, file)):
            return kind, Severity.WARNING, "DIFFUSION_SERIES", why
        return kind, Severity.NOTE, "LEFT_OUT", why_not_used(file)

    def _kind_of_mask(self, file: BidsFile) -> Kind:
        if mask_name(file) in self.options.codes:
            return "segmentation"
        said = _beside(self.folder, file, ".json")
        kinds: dict[str, Kind] = {"Lesion": "lesion mask", "Brain": "brain mask"}
        try:
            own = json.loads(said)
        except ValueError:
            return "other mask"
        return kinds.get(str(own.get("Type", "")) if isinstance(own, dict) else "", "other mask")


def _why_no_trace(folder: Folder, file: BidsFile) -> str:
    """Why a diffusion file is no single diffusion-weighted image, or ""."""
    if is_4d(folder.path(file.path)):
        return "a series of diffusion directions is no diffusion-weighted image. Give its trace, with the suffix trace"
    try:
        weightings = [float(text) for text in _beside(folder, file, ".bval").split()]
    except ValueError:
        return ""
    return "its b-value says that it is not diffusion-weighted" if weightings and max(weightings) < _LOW_B else ""


def _beside(folder: Folder, file: BidsFile, suffix: str) -> str:
    """The text of the file of the same name and another suffix, "" where there is none."""
    path = file.path.removesuffix(".gz").removesuffix(".nii") + suffix
    return folder.path(path).read_text(encoding="utf-8-sig", errors="replace") if folder.path(path).is_file() else ""


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
