"""Which files of a BIDS session become a case, where there is more than one to take: raw and preprocessed scans,
several spaces, several scans of one sequence. What cannot be told is an error of that case, never a choice of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multiseg.modalities import canonical_modality
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.bids_names import BidsFile, Kind, named_by, reading_of, unnamed_spelling
from multiseg.store.sources.file_contents import box_mm
from multiseg.store.sources.source_folder import Folder, listed
from multiseg.store.sources.source_types import SKIP, SourceOptions

SAME_BOX_MM = 0.5


@dataclass(frozen=True)
class Scan:
    """One image file, its role's name, and its sequence (None: unknown).

    `left_open` counts the entities that the user's --modality for it does not speak of; None without one. `doubt` says
    why its name does not tell the sequence.
    """

    file: BidsFile
    name: str
    sequence: str | None
    left_open: int | None
    doubt: str = ""


@dataclass(frozen=True)
class Session:
    """All files of one case by what they are."""

    case: str
    files: Mapping[Kind, Sequence[BidsFile]]

    def of(self, kind: Kind) -> Sequence[BidsFile]:
        return self.files.get(kind, ())

    @property
    def all(self) -> list[BidsFile]:
        return [file for some in self.files.values() for file in some]


@dataclass(frozen=True)
class Choice:
    """The files of a case that are taken; `findings` say what was doubtful and what was left out."""

    case: str
    scans: tuple[Scan, ...] = ()
    lesions: tuple[BidsFile, ...] = ()
    segmentations: tuple[BidsFile, ...] = ()
    brain: BidsFile | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def is_preprocessed(self) -> bool:
        return any(scan.file.pipeline for scan in self.scans)


def choose(session: Session, folder: Folder, options: SourceOptions) -> Choice:
    """The files of one case.

    Raw scans are taken wherever they fit the labels: these lie in the patient's own space, or on the very box of
    a raw scan. Only where all labels lie in a template's space are the scans there taken instead.
    """
    return _Choosing(session, folder, options).choice()


def scan_of(file: BidsFile, options: SourceOptions) -> Scan | None:
    """A file as a scan; None where the user wants it skipped."""
    named = named_by(file, options.modalities)
    if named is None:
        reading = reading_of(file)
        name = reading.sequence or unnamed_spelling(file)
        return Scan(file, name, reading.sequence, None, "" if reading.sequence else reading.why)
    spelling, left_open = named
    meant = options.modalities[spelling]
    return None if meant == SKIP else Scan(file, spelling, canonical_modality(meant) or meant, left_open)


class _Choosing:
    """One pass over a session's files; what is doubtful gathers in `findings`."""

    def __init__(self, session: Session, folder: Folder, options: SourceOptions) -> None:
        self.session = session
        self.folder = folder
        self.options = options
        self.findings: list[Finding] = []
        scans = [scan_of(file, options) for file in session.of("image")]
        self.scans = [scan for scan in scans if scan is not None]

    def choice(self) -> Choice:
        labels = self.session.of("lesion mask") or self.session.of("segmentation")
        image_space, label_space = self._spaces(labels)
        lesions = self._in_space(self.session.of("lesion mask"), label_space)
        scans = self._scans(image_space, {file.pipeline for file in lesions})
        self._doubt_boxes(lesions, scans)
        return Choice(
            case=self.session.case,
            scans=tuple(self._one_each(scans)),
            lesions=tuple(lesions),
            segmentations=tuple(self._in_space(self.session.of("segmentation"), label_space)),
            brain=self._brain(label_space, lesions),
            findings=tuple(self.findings),
        )

    def _find(self, severity: Severity, code: str, file: str, message: str) -> None:
        database = self.options.name or self.folder.name
        self.findings.append(Finding(severity, code, database, self.session.case, file, message))

    def _spaces(self, labels: Sequence[BidsFile]) -> tuple[str, str]:
        """The space of the scans to take and that of the labels; they differ only in how they are written."""
        known = [scan for scan in self.scans if scan.sequence is not None]
        spaces = {scan.file.space for scan in known}
        wanted = sorted({file.space for file in labels} or spaces)
        if not spaces or not wanted or ("" in wanted and "" in spaces):
            return "", ""
        raw = [scan.file for scan in known if not scan.file.pipeline and not scan.file.space]
        on_raw = [file for file in labels if self._shares_box(file, raw)]
        if on_raw:
            return "", on_raw[0].space
        possible = [space for space in wanted if space in spaces]
        if len(possible) == 1:
            return possible[0], possible[0]
        names = ", ".join(space or "the patient's own" for space in possible or wanted)
        if possible:
            message = (
                f"case {self.session.case!r} lies in several spaces: {names}. Leave the scans of all but one out, "
                f"for instance --modality space-{possible[-1]}_T1w=skip."
            )
        else:
            message = (
                f"the labels of case {self.session.case!r} lie in the space {names}, and no scan of it does "
                f"(they are in {', '.join(sorted(space or 'the own space' for space in spaces))}), such as "
                f"{labels[0].path}. Give the scans in that space, or the labels in the patient's own."
            )
        code = "SEVERAL_SPACES" if possible else "NO_SCAN_IN_SPACE"
        self._find(Severity.ERROR, code, labels[0].path if labels else "", message)
        return "", ""

    def _shares_box(self, file: BidsFile, others: Sequence[BidsFile]) -> bool:
        box = box_mm(self.folder.path(file.path)) if others else None
        if box is None:
            return False
        boxes = [box_mm(self.folder.path(other.path)) for other in others]
        return any(other is not None and np.allclose(box, other, atol=SAME_BOX_MM) for other in boxes)

    def _in_space(self, files: Sequence[BidsFile], space: str) -> list[BidsFile]:
        return [file for file in files if file.space == space]

    def _scans(self, space: str, pipelines: set[str]) -> list[Scan]:
        """Raw scans of a space; where there is none, those of the labels' pipeline, or else of any."""
        there = [scan for scan in self.scans if scan.file.space == space]
        raw = [scan for scan in there if not scan.file.pipeline]
        return raw or [scan for scan in there if scan.file.pipeline in pipelines] or there

    def _doubt_boxes(self, lesions: Sequence[BidsFile], scans: Sequence[Scan]) -> None:
        """A mask that says nothing of its space may lie where its own pipeline moved the scans to."""
        raw = [scan.file for scan in scans if not scan.file.pipeline]
        for lesion in lesions if raw else ():
            own = [scan.file for scan in self.scans if scan.file.pipeline == lesion.pipeline != ""]
            if self._shares_box(lesion, own) and not self._shares_box(lesion, raw):
                message = (
                    f"{lesion.path} fills the box of preprocessed scans of its pipeline and of no raw scan, but its "
                    "name has no space-. It is laid on the raw scans through its header. Look at the overlay."
                )
                self._find(Severity.WARNING, "SPACE_DOUBT", lesion.path, message)

    def _one_each(self, scans: Sequence[Scan]) -> list[Scan]:
        """One scan for each sequence; of several the one that the user named, else none of the case's."""
        chosen = [scan for scan in scans if scan.sequence is None]
        for sequence in dict.fromkeys(scan.sequence for scan in scans if scan.sequence is not None):
            alike = [scan for scan in scans if scan.sequence == sequence]
            named = [scan.left_open for scan in alike if scan.left_open is not None]
            best = [scan for scan in alike if scan.left_open == min(named)] if named else alike
            if len(best) > 1:
                self._say_duplicate(sequence, best)
            elif len(alike) > 1:
                others = listed([scan.file.path for scan in alike if scan is not best[0]], 3)
                message = f"{best[0].file.path} is its {sequence}, as asked; {others} left out."
                self._find(Severity.NOTE, "CHOSEN_SCAN", best[0].file.path, message)
            chosen.append(best[0])
        return chosen

    def _say_duplicate(self, sequence: str, alike: Sequence[Scan]) -> None:
        spellings = list(dict.fromkeys(scan.file.spelling for scan in alike))
        message = f"case {self.session.case!r} has {len(alike)} files of {sequence}: "
        message += listed([scan.file.path for scan in alike]) + ". "
        if len(spellings) < len(alike):
            message += "They have one name: keep one of the files."
        else:
            ways = " or ".join(f"--modality {spelling}={sequence}" for spelling in spellings[:4])
            message += f"Say which one to take: {ways}; or which to leave out: --modality {spellings[-1]}=skip."
        self._find(Severity.ERROR, "DUPLICATE_SEQUENCE", alike[-1].file.path, message)

    def _brain(self, space: str, lesions: Sequence[BidsFile]) -> BidsFile | None:
        """The case's brain mask; of several that of the lesion's pipeline, or the one in anat/."""
        if self.options.brain_mask not in ("", "file"):
            return None
        masks = self._in_space(self.session.of("brain mask"), space)
        pipelines = {file.pipeline for file in lesions}
        for preferred in (lambda file: file.pipeline in pipelines, lambda file: file.datatype == "anat"):
            masks = [file for file in masks if preferred(file)] or masks
        if len(masks) > 1:
            message = (
                f"case {self.session.case!r} has {len(masks)} brain masks: {listed([file.path for file in masks])}. "
                "Keep one of them, or use --brain-mask nonzero."
            )
            self._find(Severity.ERROR, "DUPLICATE_BRAIN_MASK", masks[-1].path, message)
        return masks[0] if masks else None
