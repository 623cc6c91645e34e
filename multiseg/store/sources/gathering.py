"""From files with a role each to whole cases, whatever the layout they were found in."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from multiseg.atlases import schema_of
from multiseg.errors import LabelError, UsageError
from multiseg.labels import LabelSchema
from multiseg.modalities import canonical_modality
from multiseg.store.cases import CaseFiles, Channel, LabelFile, Majority, ScanFile, paths_of
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.folder import Folder, listed
from multiseg.store.sources.model import DatabaseFiles

Row = Mapping[str, str | float]
DEFAULT_ANNOTATION = "lesion"
SKIP = "skip"
"""The meaning of a spelling that is to be left out."""


@dataclass(frozen=True)
class SourceOptions:
    """What a user says about a source; "" and empty leave it to the layout.

    Attributes:
        codes: annotation name to text such as "1=necrosis,2=oedema", or the name of an atlas.
        modalities: spellings of the files to names of sequences, or to "skip".
        participants: a table with a row a case, or a subject; its first column names it.
        brain_mask: "file", "nonzero", "otsu" or "command ..."; see `prepare.Recipe`.
        raters: "all", "consensus", "majority" or the name of one; see `_choose_raters`.
        allow_unlabelled: take cases without label, too.
        yes: what the layout guesses has been looked at and is right.
    """

    name: str = ""
    pathology: str = ""
    codes: Mapping[str, str] = field(default_factory=dict)
    modalities: Mapping[str, str] = field(default_factory=dict)
    participants: str = ""
    brain_mask: str = ""
    raters: str = ""
    allow_unlabelled: bool = False
    yes: bool = False


@dataclass(frozen=True)
class Role:
    """What one file is to a case: a sequence in some spelling, an annotation, or the brain mask.

    `fields` may hold subject, session, site and split; the files of a case must agree on them.
    """

    case: str
    kind: Literal["image", "label", "brain mask"]
    name: str
    file: ScanFile
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a layout found in a folder, before it is put together.

    Attributes:
        schemas: the meaning of the codes of every annotation among the roles.
        required: annotations that every case must have; without any, one label of some kind is asked for.
        may_lack_labels: cases of which none is expected, such as those of a test set.
        participants: rows by case or by subject.
        unused: volumes in the folder that have no role.
    """

    name: str
    folder: Folder
    roles: Sequence[Role]
    schemas: Mapping[str, LabelSchema] = field(default_factory=dict)
    pathology: str = ""
    required: Collection[str] = ()
    may_lack_labels: Collection[str] = ()
    participants: Mapping[str, Row] = field(default_factory=dict)
    unused: Sequence[str] = ()
    findings: tuple[Finding, ...] = ()
    licence: str = ""
    citation: str = ""
    source: str = ""


def gather(found: Found, options: SourceOptions) -> DatabaseFiles:
    """The cases of a database, each with all its files; what is doubtful or missing becomes a finding.

    Raises:
        UsageError, LabelError: the options do not fit what was found.
    """
    return _Gathering(found, options).database()


def schema_for(annotation: str, codes: str) -> LabelSchema:
    """The meaning of an annotation's codes; structures of "tissue..." are tissue, all others lesions.

    Without codes 1 is the annotation's own name, or "lesion" for a further rater ("rater2").

    Raises:
        LabelError: the codes are not of the form of `LabelSchema.parse`, and no atlas.
    """
    kind = "tissue" if annotation.startswith("tissue") else "lesion"
    name = DEFAULT_ANNOTATION if is_rater(annotation) else annotation
    return schema_of(codes or f"1={name}", kind)


def is_rater(annotation: str) -> bool:
    """Whether an annotation is one of several people's answers to the same question."""
    return annotation.startswith("rater")


def unused_volumes(folder: Folder, roles: Sequence[Role]) -> list[str]:
    """The volumes of a folder that no role was given to."""
    used = {path for role in roles for path in paths_of(role.file)}
    return [file for file in folder.volumes if folder.path(file) not in used]


class _Gathering:
    """One pass over a database's roles; what is doubtful gathers in `findings`."""

    def __init__(self, found: Found, options: SourceOptions) -> None:
        self.found = found
        self.options = options
        self.name = options.name or found.name
        self.findings: list[Finding] = []
        self.fields: dict[str, dict[str, str]] = {}

    def database(self) -> DatabaseFiles:
        images = self._images()
        labels = self._labels()
        masks = self._by_case([role for role in self.found.roles if role.kind == "brain mask"], "brain mask")
        mask_rule = self.options.brain_mask or ("file" if masks else "nonzero")
        cases = []
        for case in sorted(images.keys() | labels.keys()):
            mask = masks.get(case) if mask_rule == "file" else None
            if self._is_whole(case, images.get(case, {}), labels.get(case, {}), mask is None and mask_rule == "file"):
                cases.append(self._case(case, images[case], labels.get(case, {}), mask))
        self._doubt_participants(list(images))
        self._note_unused()
        annotations = dict.fromkeys(name for own in labels.values() for name in own)
        return DatabaseFiles(
            name=self.name,
            pathology=self.options.pathology or self.found.pathology,
            cases=tuple(cases),
            schemas={name: self._schema(name) for name in [*self.found.schemas, *annotations] if name in annotations},
            findings=(*self.found.findings, *self.findings),
            brain_mask=mask_rule,
            licence=self.found.licence,
            citation=self.found.citation,
            source=self.found.source,
        )

    def _find(self, severity: Severity, code: str, case: str, file: str, message: str) -> None:
        self.findings.append(Finding(severity, code, self.name, case, file, message))

    def _shown(self, file: LabelFile) -> str:
        """A file's name for a message, relative to the folder where it can be."""
        path = paths_of(file)[0]
        root = self.found.folder.root
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def _agree_on_fields(self, role: Role) -> None:
        """The files of a case must agree on the person, the visit and the site."""
        known = self.fields.setdefault(role.case, {})
        for key in sorted(key for key in role.fields if known.get(key, role.fields[key]) != role.fields[key]):
            message = (
                f"files of case {role.case!r} are of {key} {known[key]!r} and of {key} {role.fields[key]!r}: "
                f"{self._shown(role.file)}. Are they two patients? Give them different names, or name the case by "
                "{subject}, {session}."
            )
            self._find(Severity.ERROR, "DUPLICATE_CASE", role.case, self._shown(role.file), message)
        self.fields[role.case] = {**role.fields, **known}

    def _by_case(self, roles: Sequence[Role], what: str) -> dict[str, ScanFile]:
        found: dict[str, ScanFile] = {}
        for role in roles:
            self._agree_on_fields(role)
            if role.case in found:
                one, two = self._shown(found[role.case]), self._shown(role.file)
                message = f"two files are the {what} of case {role.case!r}: {one} and {two}. Narrow the pattern."
                self._find(Severity.ERROR, "DUPLICATE_CASE", role.case, two, message)
            found.setdefault(role.case, role.file)
        return found

    def _images(self) -> dict[str, dict[str, ScanFile]]:
        images: dict[str, dict[str, ScanFile]] = {}
        strange: dict[str, list[str]] = {}
        for role in (role for role in self.found.roles if role.kind == "image"):
            self._agree_on_fields(role)
            shown = self._shown(role.file)
            name = self._modality(role.name)
            own = images.setdefault(role.case, {})
            self._doubt_name(role.case, shown)
            if name is None:
                strange.setdefault(role.name, []).append(shown)
            elif name in own:
                message = (
                    f"two files are {name} of case {role.case!r}: {self._shown(own[name])} and {shown}. Two visits or "
                    "patients of one name? Tell them apart in the pattern, for instance with {session} or {site}. One "
                    "sequence twice? Leave one out by its spelling: --modality NAME=skip."
                )
                self._find(Severity.ERROR, "DUPLICATE_CASE", role.case, shown, message)
            elif name != SKIP:
                own[name] = role.file
        for spelling, files in sorted(strange.items()):
            message = (
                f"{spelling!r} is no known sequence; {len(files)} such files are left out. "
                f"If it is one, name it: --modality {spelling}=T1; if it is a label, name it with --label; if it is "
                f"neither, say so: --modality {spelling}=skip."
            )
            self._find(Severity.WARNING, "UNKNOWN_SEQUENCE", "", files[0], message)
        return images

    def _modality(self, spelling: str) -> str | None:
        given = self.options.modalities.get(spelling, spelling)
        return canonical_modality(given) or (given if spelling in self.options.modalities else None)

    def _doubt_name(self, case: str, file: str) -> None:
        """ "sub01_T2_FLAIR" may be sub01's T2-FLAIR, or the FLAIR of "sub01_T2"; a pattern takes the latter."""
        last = re.split(r"[-_. ]", case)[-1]
        if case != last and canonical_modality(last):
            message = (
                f"the case {case!r} of {file} ends in {last!r}. If that is a part of the sequence, use --modality."
            )
            self._find(Severity.WARNING, "AMBIGUOUS_NAME", case, file, message)

    def _labels(self) -> dict[str, dict[str, LabelFile]]:
        labels: dict[str, dict[str, LabelFile]] = {}
        roles = [role for role in self.found.roles if role.kind == "label"]
        for annotation in dict.fromkeys(role.name for role in roles):
            for case, file in self._by_case([role for role in roles if role.name == annotation], annotation).items():
                labels.setdefault(case, {})[annotation] = file
        return self._choose_raters(labels)

    def _choose_raters(self, labels: dict[str, dict[str, LabelFile]]) -> dict[str, dict[str, LabelFile]]:
        """Which of several raters' answers to keep.

        "all" keeps each as an annotation of its own; "consensus" only what is no single rater's; "majority"
        makes one of them voxel by voxel; a name keeps that rater. Without a choice the consensus is kept where
        there is one, else all.
        """
        raters = sorted({name for own in labels.values() for name in own if is_rater(name)})
        others = sorted({name for own in labels.values() for name in own} - set(raters))
        choice = self.options.raters or ("consensus" if DEFAULT_ANNOTATION in others else "all")
        if choice not in ("all", "consensus", "majority", *raters):
            raise UsageError(
                f"--raters {choice!r} is none of all, consensus, majority or a rater of {self.name!r} "
                f"({', '.join(raters) or 'there are none'})."
            )
        if not raters or choice == "all":
            return labels
        if choice == "consensus" and not others:
            raise UsageError(f"{self.name!r} has no consensus, only {', '.join(raters)}. Take --raters majority.")
        left_out = [name for name in raters if choice in ("consensus", *raters) and name != choice]
        if left_out:
            message = f"{', '.join(left_out)} are left out (--raters {choice}); --raters all keeps every one."
            self._find(Severity.NOTE, "RATERS", "", "", message)
        return {case: self._of_raters(case, own, raters, choice) for case, own in labels.items()}

    def _of_raters(
        self, case: str, own: Mapping[str, LabelFile], raters: Sequence[str], choice: str
    ) -> dict[str, LabelFile]:
        kept = {name: file for name, file in own.items() if name not in raters or name == choice}
        votes = tuple(file for name, file in own.items() if name in raters and isinstance(file, Path | Channel))
        if choice == "majority" and votes:
            kept[DEFAULT_ANNOTATION] = Majority(votes)
        return kept

    def _schema(self, annotation: str) -> LabelSchema:
        given = self.options.codes.get(annotation)
        if given:
            return schema_for(annotation, given)
        known = self.found.schemas.get(annotation)
        rater = next((self.found.schemas[name] for name in self.found.schemas if is_rater(name)), None)
        if known is None and annotation == DEFAULT_ANNOTATION and rater is not None:  # the majority of raters
            known = rater
        if known is None:
            raise LabelError(
                f"{self.name!r}: what do the codes of annotation {annotation!r} mean? "
                f'Say it: --labels "{annotation}:1=NAME,2=NAME".'
            )
        return known

    def _is_whole(
        self, case: str, images: Mapping[str, ScanFile], labels: Mapping[str, LabelFile], lacks_mask: bool
    ) -> bool:
        """Whether nothing that was asked for is missing; what is becomes a finding."""
        if any(f.case == case and f.severity is Severity.ERROR for f in (*self.findings, *self.found.findings)):
            return False
        missing = []
        if not images:
            missing.append(("NO_MODALITY", "has no file of a known sequence. Check the pattern, or use --modality."))
        if not (self.options.allow_unlabelled or case in self.found.may_lack_labels):
            missing += [
                ("MISSING_FILE", f"has no label {name!r}. Add it, or --allow-unlabelled.")
                for name in self.found.required
                if name not in labels
            ]
            if not labels and not self.found.required:
                missing.append(("MISSING_FILE", "has no label. Add it, or take such cases with --allow-unlabelled."))
        if lacks_mask:
            missing.append(("MISSING_FILE", "has no brain mask as others have. Add it, or use --brain-mask nonzero."))
        for code, message in missing:
            self._find(Severity.ERROR, code, case, "", f"case {case!r} {message}")
        return not missing

    def _case(
        self, case: str, images: Mapping[str, ScanFile], labels: Mapping[str, LabelFile], mask: ScanFile | None
    ) -> CaseFiles:
        own = self.fields[case]
        row = self._row(case)
        return CaseFiles(
            case=case,
            images=images,
            labels=labels,
            brain_mask=mask,
            subject=own.get("subject", case),
            session=own.get("session", ""),
            site=own.get("site", "") or str(row.get("site", "")),
            split=own.get("split", "") or str(row.get("split", "")),
            participant={column: value for column, value in row.items() if column not in ("site", "split")},
        )

    def _row(self, case: str) -> Row:
        rows = self.found.participants
        return rows.get(case) or rows.get(self.fields[case].get("subject", case)) or {}

    def _doubt_participants(self, cases: Sequence[str]) -> None:
        rows = self.found.participants
        if not rows:
            return
        names = set(cases) | {self.fields[case].get("subject", case) for case in cases}
        without_case = sorted(set(rows) - names)
        without_row = sorted(case for case in cases if not self._row(case))
        table = self.options.participants or "participants.tsv"
        for some, what in (
            (without_case, f"rows of {table} name no case"),
            (without_row, f"cases have no row in {table}"),
        ):
            if some:
                message = f"{len(some)} {what}: {listed(some)}. Write the names alike."
                self._find(Severity.WARNING, "PARTICIPANTS", "", self.options.participants, message)

    def _note_unused(self) -> None:
        if self.found.unused:
            names = listed(list(self.found.unused), 3)
            message = f"{len(self.found.unused)} files are not used, since this layout gives them no role: {names}."
            self._find(Severity.NOTE, "UNUSED_FILES", "", self.found.unused[0], message)
