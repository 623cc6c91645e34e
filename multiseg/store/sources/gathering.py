"""Put files with roles together to cases, for any layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from multiseg.errors import LabelError, few
from multiseg.labels import LabelSchema
from multiseg.modalities import canonical_modality
from multiseg.sequence_reading import changes_sequence, read_name, read_role
from multiseg.store.cases import CaseFiles, LabelFile, ScanFile, paths_of
from multiseg.store.findings import Severity
from multiseg.store.ingest.split_file import split_of
from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, choose_raters, is_rater, schema_for
from multiseg.store.sources.images import Images, check_spellings, choose_images, read_images
from multiseg.store.sources.source_types import SKIP, DatabaseFiles, FoundFiles, Role, Row, SourceOptions, finding


def gather(found: FoundFiles, options: SourceOptions) -> DatabaseFiles:
    """The cases of a database, each with all its files; what is doubtful or missing is a finding.

    Raises:
        UsageError, LabelError: the options do not fit what was found.
    """
    return _Gathering(found, options).database()


class _Gathering:
    """One pass over a database's roles, which collects `findings`."""

    def __init__(self, found: FoundFiles, options: SourceOptions) -> None:
        self.found = found
        self.options = options
        self.name = found.database(options)
        self.findings = list(found.findings)
        self.fields: dict[str, dict[str, str]] = {}
        self.annotations: dict[str, set[str]] = {}

    def database(self) -> DatabaseFiles:
        chosen = self._images()
        images, skipped = chosen.by_case, {*chosen.skipped, *self.found.skipped} - set(chosen.by_case)
        if skipped:
            message = f"{len(skipped)} cases are left out with all their images skipped: {few(sorted(skipped))}."
            self._find(Severity.NOTE, "SKIPPED_CASES", "", "", message)
        labels = self._labels(skipped)
        masks = self._masks(images)
        mask_rule = self.options.brain_mask or ("file" if masks else "nonzero")
        cases = []
        for case in sorted(images.keys() | labels.keys()):
            mask = masks.get(case) if mask_rule == "file" else None
            if self._is_whole(case, images.get(case, {}), labels.get(case, {}), mask is None and mask_rule == "file"):
                cases.append(self._case(case, images[case], labels.get(case, {}), mask))
        self._check_participants(list(images))
        self._note_unused()
        annotations = dict.fromkeys(name for files in labels.values() for name in files)
        return DatabaseFiles(
            name=self.name,
            pathology=self.found.pathology,
            cases=tuple(cases),
            schemas={name: self._schema(name) for name in [*self.found.schemas, *annotations] if name in annotations},
            findings=tuple(replace(each, database=self.name) for each in self.findings),
            brain_mask=mask_rule,
            licence=self.found.licence,
            citation=self.found.citation,
            source=self.found.source,
        )

    def _find(self, severity: Severity, code: str, case: str, file: str, message: str) -> None:
        self.findings.append(finding(severity, code, message, case, file))

    def _short_name(self, file: LabelFile) -> str:
        """A file's name for a message, relative to the database's folder if it is there."""
        path = paths_of(file)[0]
        root = self.found.folder.root
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def _check_fields(self, role: Role) -> None:
        """Add an error if the files of a case disagree on the subject, the session or the site."""
        fields = self.fields.setdefault(role.case, {})
        for key in sorted(key for key in role.fields if fields.get(key, role.fields[key]) != role.fields[key]):
            message = (
                f"files of case {role.case!r} have the {key} {fields[key]!r} and the {key} {role.fields[key]!r}: "
                f"{self._short_name(role.file)}. If they are two patients, give them different names, or name the case "
                "by {subject}, {session}."
            )
            self._find(Severity.ERROR, "DUPLICATE_CASE", role.case, self._short_name(role.file), message)
        self.fields[role.case] = {**role.fields, **fields}

    def _by_case(self, roles: Sequence[Role], what: str) -> dict[str, ScanFile]:
        files: dict[str, ScanFile] = {}
        for role in roles:
            self._check_fields(role)
            if role.case in files:
                one, two = self._short_name(files[role.case]), self._short_name(role.file)
                advice = f"Leave one out: --modality {role.spelling}=skip." if role.spelling else "Narrow the pattern."
                message = f"two files are the {what} of case {role.case!r}: {one} and {two}. {advice}"
                self._find(Severity.ERROR, "DUPLICATE_CASE", role.case, two, message)
            files.setdefault(role.case, role.file)
        return files

    def _images(self) -> Images:
        """The images of all cases, without those that the user skips."""
        check_spellings(self.found, self.options)
        images = read_images(self.found.roles, self.options)
        for image in (image for image in images if image.sequence != SKIP):
            self._check_fields(image.role)
            self._check_name(image.role, image.sequence, self._short_name(image.role.file))
        chosen = choose_images(images, self.options, self._short_name)
        self.findings += chosen.findings
        return chosen

    def _check_name(self, role: Role, sequence: str | None, file: str) -> None:
        """Report an ambiguous case: "sub01_T2_FLAIR" may be the T2-FLAIR of "sub01", or the FLAIR of "sub01_T2"."""
        last = re.split(r"[-_. ]", role.case)[-1]
        is_named = not self.options.modalities.keys().isdisjoint({role.name, role.spelling})
        if is_named or role.case == last or role.fields.get("session"):
            return
        if self.found.free_names and sequence is not None and changes_sequence(last, role.name):
            message = (
                f"the case {role.case!r} of {file} ends in {last!r}, so its {role.name} may be "
                f"{read_role(f'{last} {role.name}').sequence or 'something else'}. Name the sequence: "
                f"--modality {role.name}={sequence}, or rename the case."
            )
            self._find(Severity.ERROR, "AMBIGUOUS_NAME", role.case, file, message)
        elif canonical_modality(last):
            message = f"the case {role.case!r} of {file} ends in {last!r}. If that is a sequence, use --modality."
            self._find(Severity.WARNING, "AMBIGUOUS_NAME", role.case, file, message)

    def _masks(self, images: Mapping[str, Mapping[str, ScanFile]]) -> dict[str, ScanFile]:
        """The brain mask of every case; a visit without its own mask gets that of its subject."""
        roles = [role for role in self.found.roles if role.kind == "brain mask"]
        masks = _share_with_visits(roles, {case: fields for case, fields in self.fields.items() if case in images})
        found = {(role.case, role.file) for role in roles}
        for file in dict.fromkeys(role.file for role in masks if (role.case, role.file) not in found):
            visits = [role.case for role in masks if role.file == file]
            message = f"{self._short_name(file)} is the brain mask of all visits of its subject: {few(visits)}."
            self._find(Severity.NOTE, "MASK_OF_PERSON", "", self._short_name(file), message)
        return self._by_case(masks, "brain mask")

    def _labels(self, skipped: Collection[str]) -> dict[str, dict[str, LabelFile]]:
        labels: dict[str, dict[str, LabelFile]] = {}
        roles = [role for role in self.found.roles if role.kind == "label" and role.case not in skipped]
        for annotation in dict.fromkeys(role.name for role in roles):
            for case, file in self._by_case([role for role in roles if role.name == annotation], annotation).items():
                labels.setdefault(case, {})[annotation] = file
        self.annotations = {case: set(files) for case, files in labels.items()}
        chosen, message = choose_raters(labels, self.options.raters or self.found.raters, self.name)
        if message:
            self._find(Severity.NOTE, "RATERS", "", "", message)
        return chosen

    def _schema(self, annotation: str) -> LabelSchema:
        if self.options.codes.get(annotation):
            return schema_for(annotation, self.options.codes[annotation])
        schema = self.found.schemas.get(annotation)
        if schema is None and annotation == DEFAULT_ANNOTATION:  # the majority of raters
            schema = next((schema for name, schema in self.found.schemas.items() if is_rater(name)), None)
        if schema is None:
            raise LabelError(
                f"{self.name!r}: the meaning of the codes of annotation {annotation!r} is unknown. "
                f'Give it: --labels "{annotation}:1=NAME,2=NAME".'
            )
        return schema

    def _is_whole(
        self, case: str, images: Mapping[str, ScanFile], labels: Mapping[str, LabelFile], lacks_mask: bool
    ) -> bool:
        """Whether a case has all it needs; what is missing becomes a finding."""
        if any(each.case == case and each.severity is Severity.ERROR for each in self.findings):
            return False
        missing = []
        if not images:
            missing.append(("NO_MODALITY", "has no file of a known sequence. Check the pattern, or use --modality."))
        if not (self.options.allow_unlabelled or case in self.found.may_lack_labels):
            missing += [
                ("MISSING_FILE", f"has no label {name!r}. Add it, or use --allow-unlabelled.")
                for name in self.found.required
                if self._lacks(case, name)
            ]
            if not labels and not missing:
                what = "has no label. Add it, or use --allow-unlabelled; predict needs no labels."
                missing.append(("MISSING_FILE", what))
        if lacks_mask:
            what = "has no brain mask, but other cases have one. Add it, or use --brain-mask nonzero."
            missing.append(("MISSING_FILE", what))
        for code, message in missing:
            self._find(Severity.ERROR, code, case, "", f"case {case!r} {message}")
        return not missing

    def _lacks(self, case: str, annotation: str) -> bool:
        """Whether a case lacks an annotation that it needs; raters that are left out are not needed."""
        is_needed = not is_rater(annotation) or self.options.raters in ("", "all", "majority", annotation)
        return is_needed and annotation not in self.annotations.get(case, ())

    def _case(
        self, case: str, images: Mapping[str, ScanFile], labels: Mapping[str, LabelFile], mask: ScanFile | None
    ) -> CaseFiles:
        fields = self.fields[case]
        row = self._row(case)
        return CaseFiles(
            case=case,
            images=images,
            labels=labels,
            brain_mask=mask,
            subject=fields.get("subject", case),
            session=fields.get("session", ""),
            site=fields.get("site", "") or str(row.get("site", "")).strip(),
            split=fields.get("split", "") or split_of(str(row.get("split", "")), self._table, case),
            participant={column: value for column, value in row.items() if column not in ("site", "split")},
        )

    @property
    def _table(self) -> str:
        return self.options.participants or "participants.tsv"

    def _row(self, case: str) -> Row:
        rows = self.found.participants
        return rows.get(case) or rows.get(self.fields[case].get("subject", case)) or {}

    def _check_participants(self, cases: Sequence[str]) -> None:
        rows = self.found.participants
        if not rows:
            return
        names = set(cases) | {self.fields[case].get("subject", case) for case in cases}
        without_case = sorted(set(rows) - names)
        without_row = sorted(case for case in cases if not self._row(case))
        faults = {
            f"rows of {self._table} name no case": without_case,
            f"cases have no row in {self._table}": without_row,
        }
        for what, unmatched in faults.items():
            if unmatched:
                message = f"{len(unmatched)} {what}: {few(unmatched)}. Use the same names in both."
                self._find(Severity.WARNING, "PARTICIPANTS", "", self.options.participants, message)

    def _note_unused(self) -> None:
        """Report files without a role, as a warning if they may be scans that the layout should have used."""
        unused = self.found.unused
        scans = [file for file in unused if self.found.any_scan_counts and read_name(Path(file).name).named]
        others = [file for file in unused if file not in scans]
        for files, severity, code in (scans, Severity.WARNING, "UNUSED_SCANS"), (others, Severity.NOTE, "UNUSED_FILES"):
            if files:
                message = f"{len(files)} files are not used by this layout: {few(files, 3)}."
                self._find(severity, code, "", files[0], message)


def _share_with_visits(masks: Sequence[Role], fields: Mapping[str, Mapping[str, str]]) -> list[Role]:
    """The roles of brain masks, with a subject's mask repeated for each visit of the subject without its own mask.

    Args:
        fields: subject, session and site of every case that has a scan.
    """
    masked = {role.case for role in masks}
    shared: list[Role] = []
    for role in masks:
        visits = [case for case, visit in fields.items() if case not in masked and _is_of_subject(role, visit)]
        shared += [replace(role, case=case, fields=fields[case]) for case in visits] or [role]
    return shared


def _is_of_subject(mask: Role, visit: Mapping[str, str]) -> bool:
    fields = {key: text for key, text in mask.fields.items() if text}
    return "subject" in fields and "session" not in fields and fields.items() <= visit.items()
