"""From files with a role each to whole cases, whatever the layout they were found in."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from multiseg.errors import LabelError
from multiseg.labels import LabelSchema
from multiseg.modalities import canonical_modality
from multiseg.sequence_reading import changes_sequence, read_name, read_role
from multiseg.store.cases import CaseFiles, LabelFile, ScanFile, paths_of
from multiseg.store.findings import Finding, Severity
from multiseg.store.ingest.split_file import split_of
from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, choose_raters, is_rater, schema_for
from multiseg.store.sources.images import Images, check_spellings, choose_images, read_images
from multiseg.store.sources.masks import given_to_visits
from multiseg.store.sources.source_folder import listed
from multiseg.store.sources.source_types import SKIP, DatabaseFiles, Found, Role, Row, SourceOptions


def gather(found: Found, options: SourceOptions) -> DatabaseFiles:
    """The cases of a database, each with all its files; what is doubtful or missing becomes a finding.

    Raises:
        UsageError, LabelError: the options do not fit what was found.
    """
    return _Gathering(found, options).database()


class _Gathering:
    """One pass over a database's roles; what is doubtful gathers in `findings`."""

    def __init__(self, found: Found, options: SourceOptions) -> None:
        self.found = found
        self.options = options
        self.name = options.name or found.name
        self.findings: list[Finding] = []
        self.fields: dict[str, dict[str, str]] = {}
        self.drawn: dict[str, set[str]] = {}

    def database(self) -> DatabaseFiles:
        read = self._images()
        images, skipped = read.by_case, {*read.skipped, *self.found.skipped} - set(read.by_case)
        self._note_skipped(skipped)
        labels = self._labels(skipped)
        masks = self._masks(images)
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
            pathology=self.found.pathology,
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
                way = f"Leave one out: --modality {role.spelling}=skip." if role.spelling else "Narrow the pattern."
                message = f"two files are the {what} of case {role.case!r}: {one} and {two}. {way}"
                self._find(Severity.ERROR, "DUPLICATE_CASE", role.case, two, message)
            found.setdefault(role.case, role.file)
        return found

    def _images(self) -> Images:
        """The images of all cases; those that the user leaves out are not looked at."""
        check_spellings(self.found, self.options)
        images = read_images(self.found.roles, self.options)
        for image in (image for image in images if image.sequence != SKIP):
            self._agree_on_fields(image.role)
            self._doubt_name(image.role, image.sequence, self._shown(image.role.file))
        chosen = choose_images(images, self.options, self.name, self._shown)
        self.findings += chosen.findings
        return chosen

    def _note_skipped(self, cases: Collection[str]) -> None:
        if cases:
            message = f"{len(cases)} cases are left out, since all their images are skipped: {listed(sorted(cases))}."
            self._find(Severity.NOTE, "SKIPPED_CASES", "", "", message)

    def _doubt_name(self, role: Role, sequence: str | None, file: str) -> None:
        """ "sub01_T2_FLAIR" may be sub01's T2-FLAIR, or the FLAIR of "sub01_T2"; a pattern takes the latter."""
        last = re.split(r"[-_. ]", role.case)[-1]
        said = {role.name, role.spelling} & set(self.options.modalities)
        if said or role.case == last or role.fields.get("session"):
            return
        if self.found.free_names and sequence is not None and changes_sequence(last, role.name):
            message = (
                f"the case {role.case!r} of {file} ends in {last!r}, which may say that its {role.name} is "
                f"{read_role(f'{last} {role.name}').sequence or 'something else'}. Say what it is: "
                f"--modality {role.name}={sequence}, or name the case otherwise."
            )
            self._find(Severity.ERROR, "AMBIGUOUS_NAME", role.case, file, message)
        elif canonical_modality(last):
            message = (
                f"the case {role.case!r} of {file} ends in {last!r}. If that is a part of the sequence, use --modality."
            )
            self._find(Severity.WARNING, "AMBIGUOUS_NAME", role.case, file, message)

    def _masks(self, images: Mapping[str, Mapping[str, ScanFile]]) -> dict[str, ScanFile]:
        """The brain mask of every case, also of a visit that has but its person's."""
        roles = [role for role in self.found.roles if role.kind == "brain mask"]
        given = given_to_visits(roles, {case: own for case, own in self.fields.items() if case in images})
        own = {(role.case, role.file) for role in roles}
        for file in dict.fromkeys(role.file for role in given if (role.case, role.file) not in own):
            visits = [role.case for role in given if role.file == file]
            message = f"{self._shown(file)} is the brain mask of every visit of its person: {listed(visits)}."
            self._find(Severity.NOTE, "MASK_OF_PERSON", "", self._shown(file), message)
        return self._by_case(given, "brain mask")

    def _labels(self, skipped: Collection[str]) -> dict[str, dict[str, LabelFile]]:
        labels: dict[str, dict[str, LabelFile]] = {}
        roles = [role for role in self.found.roles if role.kind == "label" and role.case not in skipped]
        for annotation in dict.fromkeys(role.name for role in roles):
            for case, file in self._by_case([role for role in roles if role.name == annotation], annotation).items():
                labels.setdefault(case, {})[annotation] = file
        self.drawn = {case: set(own) for case, own in labels.items()}
        chosen, message = choose_raters(labels, self.options.raters or self.found.raters, self.name)
        if message:
            self._find(Severity.NOTE, "RATERS", "", "", message)
        return chosen

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
                if not self._is_drawn(case, name)
            ]
            if not labels and not missing:
                missing.append(("MISSING_FILE", "has no label. Add it, or take such cases with --allow-unlabelled."))
        if lacks_mask:
            missing.append(("MISSING_FILE", "has no brain mask as others have. Add it, or use --brain-mask nonzero."))
        for code, message in missing:
            self._find(Severity.ERROR, code, case, "", f"case {case!r} {message}")
        return not missing

    def _is_drawn(self, case: str, annotation: str) -> bool:
        """Whether a case has an annotation that is asked for; of raters only those that are to be kept are."""
        asked = not is_rater(annotation) or self.options.raters in ("", "all", "majority", annotation)
        return not asked or annotation in self.drawn.get(case, ())

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
            site=own.get("site", "") or str(row.get("site", "")).strip(),
            split=own.get("split", "") or split_of(str(row.get("split", "")), self._table, case),
            participant={column: value for column, value in row.items() if column not in ("site", "split")},
        )

    @property
    def _table(self) -> str:
        return self.options.participants or "participants.tsv"

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
        for some, what in (
            (without_case, f"rows of {self._table} name no case"),
            (without_row, f"cases have no row in {self._table}"),
        ):
            if some:
                message = f"{len(some)} {what}: {listed(some)}. Write the names alike."
                self._find(Severity.WARNING, "PARTICIPANTS", "", self.options.participants, message)

    def _note_unused(self) -> None:
        """Files without a role. Where no layout says what else may lie there, a scan among them may be a patient's."""
        unused = self.found.unused
        scans = [file for file in unused if self.found.any_scan_counts and read_name(Path(file).name).named]
        others = [file for file in unused if file not in scans]
        for files, severity, code in (
            (scans, Severity.WARNING, "UNUSED_SCANS"),
            (others, Severity.NOTE, "UNUSED_FILES"),
        ):
            if files:
                message = f"{len(files)} files are not used, since this layout gives them no role: {listed(files, 3)}."
                self._find(severity, code, "", files[0], message)
