"""The files of a BIDS dataset by session and by what they are, and which of them are left out for what reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.bids_choice import Session
from multiseg.store.sources.bids_names import BidsFile, Kind, kind_of, mask_name, why_not_used
from multiseg.store.sources.folder import Folder, listed
from multiseg.store.sources.headers import is_4d
from multiseg.store.sources.model import SourceOptions

_LOW_B = 50
"""Diffusion weightings below this (s/mm^2) leave an image all but unweighted."""


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
