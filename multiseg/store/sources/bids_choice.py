"""Choose the files of a BIDS session for its case: among raw and preprocessed scans, several spaces, and several
scans of one sequence. An ambiguous choice is an error of that case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multiseg.errors import few
from multiseg.modalities import canonical_modality
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.bids_names import BidsFile, Kind, named_by, reading_of, unnamed_spelling
from multiseg.store.sources.file_contents import box_mm
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import SKIP, SourceOptions, finding

SAME_BOX_MM = 0.5


@dataclass(frozen=True)
class Scan:
    """One image file, its role's name, and its sequence (None: unknown).

    `num_open` counts the entities that the user's --modality for it does not name; None without --modality. `doubt`
    says why the sequence is unknown.
    """

    file: BidsFile
    name: str
    sequence: str | None
    num_open: int | None
    doubt: str = ""


@dataclass(frozen=True)
class Session:
    """All files of one case by kind."""

    case: str
    files: Mapping[Kind, Sequence[BidsFile]]

    def of(self, kind: Kind) -> Sequence[BidsFile]:
        return self.files.get(kind, ())

    @property
    def all(self) -> list[BidsFile]:
        return [file for files in self.files.values() for file in files]


@dataclass(frozen=True)
class Choice:
    """The files that are used for a case; `findings` say what was ambiguous and what was left out."""

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
    """Choose the files of one case.

    Raw scans are used if the labels are in the patient's own space, or have the same box as a raw scan. If all labels
    are in a template's space, the scans in that space are used.
    """
    return _Choosing(session, folder, options).choice()


def scan_of(file: BidsFile, options: SourceOptions) -> Scan | None:
    """A file as a scan; None if the user skips it."""
    named = named_by(file, options.modalities)
    if named is None:
        reading = reading_of(file)
        name = reading.sequence or unnamed_spelling(file)
        return Scan(file, name, reading.sequence, None, "" if reading.sequence else reading.why)
    spelling, num_open = named
    sequence = options.modalities[spelling]
    return None if sequence == SKIP else Scan(file, spelling, canonical_modality(sequence) or sequence, num_open)


class _Choosing:
    """One pass over a session's files, which collects `findings`."""

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
        self._check_boxes(lesions, scans)
        return Choice(
            case=self.session.case,
            scans=tuple(self._one_each(scans)),
            lesions=tuple(lesions),
            segmentations=tuple(self._in_space(self.session.of("segmentation"), label_space)),
            brain=self._brain(label_space, lesions),
            findings=tuple(self.findings),
        )

    def _find(self, severity: Severity, code: str, file: str, message: str) -> None:
        self.findings.append(finding(severity, code, message, self.session.case, file))

    def _spaces(self, labels: Sequence[BidsFile]) -> tuple[str, str]:
        """The space of the scans to use and that of the labels; the two may be names of the same space."""
        known = [scan for scan in self.scans if scan.sequence is not None]
        spaces = {scan.file.space for scan in known}
        wanted = sorted({file.space for file in labels} or spaces)
        if not spaces or not wanted or ("" in wanted and "" in spaces):
            return "", ""
        raw = [scan.file for scan in known if not scan.file.pipeline and not scan.file.space]
        on_raw = [file for file in labels if self._shares_box(file, raw)]
        if on_raw:
            return "", on_raw[0].space
        shared = [space for space in wanted if space in spaces]
        if len(shared) == 1:
            return shared[0], shared[0]
        own = "the patient's own"
        names = ", ".join(space or own for space in shared or wanted)
        if shared:
            message = (
                f"case {self.session.case!r} is in several spaces: {names}. Leave out the scans of all but one, "
                f"for instance --modality space-{shared[-1]}_T1w=skip."
            )
        else:
            message = (
                f"the labels of case {self.session.case!r} are in the space {names}, such as {labels[0].path}, but its "
                f"scans are in {', '.join(sorted(space or own for space in spaces))}. Add scans in that space, or "
                "labels in the patient's own."
            )
        code = "SEVERAL_SPACES" if shared else "NO_SCAN_IN_SPACE"
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
        """Raw scans in a space; if there are none, those of the labels' pipeline, or else of any."""
        scans = [scan for scan in self.scans if scan.file.space == space]
        raw = [scan for scan in scans if not scan.file.pipeline]
        return raw or [scan for scan in scans if scan.file.pipeline in pipelines] or scans

    def _check_boxes(self, lesions: Sequence[BidsFile], scans: Sequence[Scan]) -> None:
        """Warn of a mask without space- in its name that seems to be in the space of its pipeline's scans."""
        raw = [scan.file for scan in scans if not scan.file.pipeline]
        for lesion in lesions if raw else ():
            preprocessed = [scan.file for scan in self.scans if scan.file.pipeline == lesion.pipeline != ""]
            if self._shares_box(lesion, preprocessed) and not self._shares_box(lesion, raw):
                message = (
                    f"{lesion.path} has the box of its pipeline's preprocessed scans and not of a raw scan, but its "
                    "name has no space-. It is placed on the raw scans by its header. Check the overlay."
                )
                self._find(Severity.WARNING, "SPACE_DOUBT", lesion.path, message)

    def _one_each(self, scans: Sequence[Scan]) -> list[Scan]:
        """One scan for each sequence: the one that the user named if there are several, else an error for the case."""
        chosen = [scan for scan in scans if scan.sequence is None]
        for sequence in dict.fromkeys(scan.sequence for scan in scans if scan.sequence is not None):
            candidates = [scan for scan in scans if scan.sequence == sequence]
            named = [scan.num_open for scan in candidates if scan.num_open is not None]
            best = [scan for scan in candidates if scan.num_open == min(named)] if named else candidates
            if len(best) > 1:
                self._report_duplicate(sequence, best)
            elif len(candidates) > 1:
                others = few([scan.file.path for scan in candidates if scan is not best[0]], 3)
                message = f"{best[0].file.path} is its {sequence}, by --modality; left out: {others}."
                self._find(Severity.NOTE, "CHOSEN_SCAN", best[0].file.path, message)
            chosen.append(best[0])
        return chosen

    def _report_duplicate(self, sequence: str, scans: Sequence[Scan]) -> None:
        spellings = list(dict.fromkeys(scan.file.spelling for scan in scans))
        message = f"case {self.session.case!r} has {len(scans)} files of {sequence}: "
        message += few([scan.file.path for scan in scans]) + ". "
        if len(spellings) < len(scans):
            message += "They have the same name: keep one of the files."
        else:
            ways = " or ".join(f"--modality {spelling}={sequence}" for spelling in spellings[:4])
            message += f"Choose one: {ways}; or leave one out: --modality {spellings[-1]}=skip."
        self._find(Severity.ERROR, "DUPLICATE_SEQUENCE", scans[-1].file.path, message)

    def _brain(self, space: str, lesions: Sequence[BidsFile]) -> BidsFile | None:
        """The case's brain mask; if there are several, that of the lesion's pipeline, or the one in anat/."""
        if self.options.brain_mask not in ("", "file"):
            return None
        masks = self._in_space(self.session.of("brain mask"), space)
        pipelines = {file.pipeline for file in lesions}
        for preferred in (lambda file: file.pipeline in pipelines, lambda file: file.datatype == "anat"):
            masks = [file for file in masks if preferred(file)] or masks
        if len(masks) > 1:
            message = (
                f"case {self.session.case!r} has {len(masks)} brain masks: "
                f"{few([file.path for file in masks])}. Keep one of them, or use --brain-mask nonzero."
            )
            self._find(Severity.ERROR, "DUPLICATE_BRAIN_MASK", masks[-1].path, message)
        return masks[0] if masks else None
