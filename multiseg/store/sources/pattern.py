"""A folder whose file names follow patterns such as "{case}/{modality}.nii.gz"."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multiseg.errors import SourceError, UsageError
from multiseg.labels import LabelSchema
from multiseg.modalities import canonical_modality
from multiseg.store.findings import Finding, Severity
from multiseg.store.prepare import CaseFiles
from multiseg.store.sources.model import DatabaseFiles

FIELDS = ("case", "subject", "session", "site", "modality")
DEFAULT_ANNOTATION = "lesion"


@dataclass(frozen=True)
class PatternSource:
    """One database described by file-name patterns relative to `root`.

    Attributes:
        labels: annotation name to pattern.
        codes: annotation name to text such as "1=necrosis,2=oedema"; without it 1 is the annotation.
        modalities: spellings of the files to names of sequences, beside the well-known ones.
        participants: a CSV table with a row a case; its first column names the case.
    """

    name: str
    root: Path
    pattern: str
    pathology: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    brain_mask: str = ""
    modalities: Mapping[str, str] = field(default_factory=dict)
    participants: str = ""
    allow_unlabelled: bool = False
    licence: str = ""
    citation: str = ""
    source: str = ""


def find_database(source: PatternSource) -> DatabaseFiles:
    """Look at the folder and gather every case's files; nothing is read yet but names.

    Raises:
        SourceError: there is no folder, or no file fits the pattern.
        UsageError: a pattern or a label's codes cannot be meant.
    """
    if not source.root.is_dir():
        raise SourceError(f"there is no folder {source.root}.", code="MISSING_FILE", file=str(source.root))
    files = list(_files_below(source.root))
    search = _Search(source, files)
    cases = search.cases()
    if not cases and not search.findings:
        raise SourceError(
            f"none of the {len(files)} files below {source.root} fits the pattern {source.pattern!r}. "
            f"Such a file would be {_example(source.pattern)!r}.",
            code="NOTHING_FOUND",
            file=str(source.root),
        )
    schemas = {name: schema_for(name, source.codes.get(name, "")) for name in source.labels}
    for name in source.codes:
        if name not in source.labels:
            raise UsageError(f"codes are given for the annotation {name!r}, but no --label {name}=... names its files.")
    return DatabaseFiles(
        name=source.name,
        pathology=source.pathology,
        cases=tuple(cases),
        schemas=schemas,
        findings=tuple(search.findings),
        brain_mask="file" if source.brain_mask else "nonzero",
        licence=source.licence,
        citation=source.citation,
        source=source.source,
    )


def schema_for(annotation: str, codes: str) -> LabelSchema:
    """The meaning of an annotation's codes; structures of "tissue..." are tissue, all others lesions.

    Without codes 1 is the annotation's own name, or "lesion" for a further rater ("rater2").
    """
    kind = "tissue" if annotation.startswith("tissue") else "lesion"
    name = DEFAULT_ANNOTATION if annotation.startswith("rater") else annotation
    return LabelSchema.parse(codes or f"1={name}", kind)


def _files_below(root: Path) -> Iterator[str]:
    """Relative names of all files in sorted order, hidden ones (such as macOS's "._x") left out."""
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression for a whole relative path; {field} stands for one part without '/'.

    Raises:
        UsageError: an unknown field, or no field that tells the case.
    """
    expression, seen = "", set()
    if re.search(r"[{}]", re.sub(r"\{\w+\}", "", pattern)):
        raise UsageError(f"the pattern {pattern!r} has a brace too many, or a field that is no single word.")
    for text, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", pattern):
        expression += re.escape(text).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        if name and name not in FIELDS:
            raise UsageError(f"the pattern {pattern!r} has a field {{{name}}}; fields are {', '.join(FIELDS)}.")
        if name:
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
    if not seen & {"case", "subject"}:
        raise UsageError(f"the pattern {pattern!r} does not say where the case's name stands: write {{case}}.")
    return re.compile(expression)


def _example(pattern: str) -> str:
    return pattern.format(case="case01", subject="01", session="1", site="A", modality="T1")


def _case_name(fields: Mapping[str, str]) -> str:
    return fields.get("case") or "_".join(fields[key] for key in ("subject", "session") if key in fields)


class _Search:
    """One pass over a folder's file names; what is doubtful gathers in `findings`."""

    def __init__(self, source: PatternSource, files: Sequence[str]) -> None:
        self.source = source
        self.files = files
        self.findings: list[Finding] = []
        self.fields: dict[str, dict[str, str]] = {}

    def cases(self) -> list[CaseFiles]:
        labels = {name: self._by_case(pattern, name) for name, pattern in self.source.labels.items()}
        masks = self._by_case(self.source.brain_mask, "brain mask") if self.source.brain_mask else {}
        elsewhere = {path for found in [*labels.values(), masks] for path in found.values()}
        images = self._images(elsewhere)
        participants = self._participants(set(images))
        cases = []
        for case in sorted(set(images) | {case for found in labels.values() for case in found}):
            if self._is_whole(case, images, labels, masks):
                own = self.fields[case]
                cases.append(
                    CaseFiles(
                        case=case,
                        images=images[case],
                        labels={
                            name: self.source.root / found[case] for name, found in labels.items() if case in found
                        },
                        brain_mask=self.source.root / masks[case] if case in masks else None,
                        subject=own.get("subject", case),
                        session=own.get("session", ""),
                        site=own.get("site", "") or str(participants.get(case, {}).get("site", "")),
                        split=str(participants.get(case, {}).get("split", "")),
                        participant={k: v for k, v in participants.get(case, {}).items() if k not in ("site", "split")},
                    )
                )
        return cases

    def _find(self, severity: Severity, code: str, case: str, file: str, message: str) -> None:
        self.findings.append(Finding(severity, code, self.source.name, case, file, message))

    def _by_case(self, pattern: str, role: str) -> dict[str, str]:
        expression = compile_pattern(pattern)
        found: dict[str, str] = {}
        for file in self.files:
            match = expression.fullmatch(file)
            if match is None:
                continue
            case = self._case_of(match, file)
            if case in found:
                message = f"two files are the {role} of case {case!r}: {found[case]} and {file}. Narrow the pattern."
                self._find(Severity.ERROR, "DUPLICATE_CASE", case, file, message)
            found.setdefault(case, file)
        return found

    def _case_of(self, match: re.Match[str], file: str) -> str:
        """The case that a file belongs to, whose files must agree on the person, the visit and the site."""
        fields = {key: text for key, text in match.groupdict().items() if key != "modality"}
        case = _case_name(fields)
        known = self.fields.setdefault(case, {})
        differ = sorted(key for key in fields if known.get(key, fields[key]) != fields[key])
        for key in differ:
            message = (
                f"files of case {case!r} are of {key} {known[key]!r} and of {key} {fields[key]!r}: {file}. "
                f"Are they two patients? Give them different names, or name the case by {{subject}}, {{session}}."
            )
            self._find(Severity.ERROR, "DUPLICATE_CASE", case, file, message)
        known |= fields
        return case

    def _doubt_name(self, case: str, file: str) -> None:
        """ "sub01_T2_FLAIR" may be sub01's T2-FLAIR, or the FLAIR of "sub01_T2"; the pattern takes the latter."""
        last = re.split(r"[-_. ]", case)[-1]
        if case != last and canonical_modality(last):
            message = (
                f"the case {case!r} of {file} ends in {last!r}. If that is a part of the sequence, use --modality."
            )
            self._find(Severity.WARNING, "AMBIGUOUS_NAME", case, file, message)

    def _images(self, elsewhere: set[str]) -> dict[str, dict[str, Path]]:
        expression = compile_pattern(self.source.pattern)
        images: dict[str, dict[str, Path]] = {}
        strange: dict[str, list[str]] = {}
        for file in self.files:
            match = None if file in elsewhere else expression.fullmatch(file)
            if match is None:
                continue
            case = self._case_of(match, file)
            spelling = match.groupdict().get("modality", "") or Path(file).name.split(".")[0]
            name = self._modality(spelling)
            own = images.setdefault(case, {})
            self._doubt_name(case, file)
            if name is None:
                strange.setdefault(spelling, []).append(file)
            elif name in own:
                message = (
                    f"two files are {name} of case {case!r}: {own[name].relative_to(self.source.root)} and {file}. "
                    "Two patients of one name? Tell them apart in the pattern, for instance with {site}."
                )
                self._find(Severity.ERROR, "DUPLICATE_CASE", case, file, message)
            else:
                own[name] = self.source.root / file
        for spelling, files in sorted(strange.items()):
            message = (
                f"{spelling!r} is no known sequence; {len(files)} such files are left out. "
                f"If it is one, name it: --modality {spelling}=T1; if it is a label, name it with --label."
            )
            self._find(Severity.WARNING, "UNKNOWN_SEQUENCE", "", files[0], message)
        return images

    def _modality(self, spelling: str) -> str | None:
        given = self.source.modalities.get(spelling, spelling)
        return canonical_modality(given) or (given if spelling in self.source.modalities else None)

    def _is_whole(
        self,
        case: str,
        images: Mapping[str, Mapping[str, Path]],
        labels: Mapping[str, Mapping[str, str]],
        masks: Mapping[str, str],
    ) -> bool:
        """Whether nothing that was asked for is missing; what is becomes a finding."""
        if any(f.case == case and f.severity is Severity.ERROR for f in self.findings):
            return False
        missing = []
        if not images.get(case):
            missing.append(("NO_MODALITY", "has no file of a known sequence. Check the pattern, or use --modality."))
        if not self.source.allow_unlabelled:
            missing += [
                ("MISSING_FILE", f"has no label {name!r} ({self.source.labels[name]}). Add it, or --allow-unlabelled.")
                for name, found in labels.items() if case not in found
            ]  # fmt: skip
        if self.source.brain_mask and case not in masks:
            missing.append(("MISSING_FILE", f"has no brain mask ({self.source.brain_mask}). Add it."))
        for code, message in missing:
            self._find(Severity.ERROR, code, case, "", f"case {case!r} {message}")
        return not missing

    def _participants(self, cases: set[str]) -> dict[str, dict[str, str | float]]:
        if not self.source.participants:
            return {}
        rows = read_participants(self.source.root / self.source.participants)
        for which, names in (("no case", set(rows) - cases), ("no row", cases - set(rows))):
            if names:
                listed = ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
                message = f"{len(names)} of {self.source.participants} have {which}: {listed}. Write the names alike."
                self._find(Severity.WARNING, "PARTICIPANTS", "", self.source.participants, message)
        return rows


def read_participants(path: Path) -> dict[str, dict[str, str | float]]:
    """A CSV or TSV table as rows by its first column; a column of numbers becomes numbers.

    Raises:
        SourceError: there is no such table, or two rows name the same case.
    """
    lines = read_table(path)
    if not lines:
        raise SourceError(f"{path} has no rows.", code="EMPTY_TABLE", file=str(path))
    key = next(iter(lines[0]))
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        if line[key] in rows:
            message = f"{path} names {line[key]!r} in two rows. Keep one."
            raise SourceError(message, code="DUPLICATE_CASE", file=str(path))
        rows[line[key]] = {column: text or "" for column, text in line.items() if column and column != key}
    return with_numbers(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file by its header.

    Raises:
        SourceError: there is no such file, or it is not in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path)) from None
    except UnicodeDecodeError as error:
        message = f"{path} is not in UTF-8 ({error}). Save it so from the spreadsheet."
        raise SourceError(message, code="NOT_UTF8", file=str(path)) from error
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))


def with_numbers(rows: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str | float]]:
    """The same rows, a column in which every value is a number (or empty) turned into numbers."""
    columns = {column for row in rows.values() for column in row}
    numeric = {c for c in columns if all(_number(row.get(c, "")) is not None for row in rows.values())}
    return {
        case: {c: float(text or "nan") if c in numeric else text for c, text in row.items()}
        for case, row in rows.items()
    }


def _number(text: str) -> float | None:
    try:
        return float(text or "nan")
    except ValueError:
        return None
