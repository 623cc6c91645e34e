"""Which file of a case is which sequence, and which files the user leaves out.

A file is the sequence that `--modality SPELLING=NAME` says of its name ("T1.img") or of its spelling ("T1"), else the
one that its spelling is known for, else the one that `--modality NAME` says of all files. Where several files of a
case are one sequence (T1 beside T1_brain), the one that the user named is taken and the others are left out with a
note; without a name none is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from multiseg.errors import UsageError
from multiseg.modalities import canonical_modality, modality_of_file_name
from multiseg.sequence_reading import read_role
from multiseg.store.cases import LabelFile, ScanFile, Series
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_folder import listed
from multiseg.store.sources.source_types import SKIP, Found, Role, SourceOptions

Shown = Callable[[LabelFile], str]
"""A file's name for a message."""


@dataclass(frozen=True)
class Image:
    """A file, its sequence (None: of no known name; SKIP: left out), and whether the user named its very spelling.

    `why` is the reason where there is no sequence.
    """

    role: Role
    sequence: str | None
    is_named: bool
    why: str = ""

    @property
    def spelling(self) -> str:
        return self.role.spelling or self.role.name


@dataclass(frozen=True)
class Images:
    """The sequences of every case that has a file; `skipped` are cases of which the user leaves everything out."""

    by_case: Mapping[str, Mapping[str, ScanFile]]
    skipped: Collection[str]
    findings: tuple[Finding, ...]


def check_spellings(found: Found, options: SourceOptions) -> None:
    """A spelling that no file has was mistyped, and the file that was meant would be taken otherwise without a word.

    Raises:
        UsageError: there is one. (Series of DICOM have names of their own, which their layout checks.)
    """
    images = [role for role in found.roles if role.kind == "image"]
    if any(isinstance(role.file, Series) for role in images):
        return
    known = {name for role in images for name in (role.name, role.spelling, role.file.name) if name}
    paths = "\n".join(found.folder.files).lower()
    unknown = [name for name in options.modalities if name not in known and name.lower() not in paths]
    if unknown:
        spellings = sorted({role.spelling or role.name for role in images} - {""})
        raise UsageError(
            f"--modality names {', '.join(map(repr, unknown))}, but no file of {found.folder.root} is spelt so. "
            f"Spellings there: {listed(spellings, 20) or 'none'}."
        )


def read_images(roles: Sequence[Role], options: SourceOptions) -> list[Image]:
    """What every image is."""
    images = [role for role in roles if role.kind == "image"]
    spellings = {role.spelling or role.name for role in images}
    return [_image(role, spellings, options) for role in images]


def _image(role: Role, spellings: Collection[str], options: SourceOptions) -> Image:
    spelling, given = role.spelling or role.name, options.modalities
    # A layout's own name for a sequence is no spelling where another file is spelt so: T1_brain beside T1.
    known_as = [role.file.name, spelling, *(() if role.name in spellings else (role.name,))]
    said = next((name for name in known_as if name in given), None)
    if said is not None:
        name = SKIP if given[said] == SKIP else canonical_modality(given[said]) or given[said]
        return Image(role, name, is_named=said in known_as[:2])
    reading = read_role(role.name)
    sequence = reading.sequence or (canonical_modality(role.name) if reading.is_vague else None)
    if role.doubt:
        return Image(role, None, is_named=False, why=role.doubt)
    of_all = canonical_modality(options.modality) or options.modality
    if sequence is None and reading.is_vague and set(reading.named) <= {of_all}:
        sequence = of_all or None  # where the user gives none, the file stays unknown
    return Image(role, sequence, is_named=False, why=reading.why)


def choose_images(images: Sequence[Image], options: SourceOptions, database: str, shown: Shown) -> Images:
    """One file for each sequence of each case; what is doubtful becomes a finding."""
    by_case: dict[str, dict[str, list[Image]]] = {}
    strange: dict[tuple[str, str], list[str]] = {}
    for image in (image for image in images if image.sequence != SKIP):
        own = by_case.setdefault(image.role.case, {})
        if image.sequence is None:
            strange.setdefault((image.spelling, image.why), []).append(shown(image.role.file))
        else:
            own.setdefault(image.sequence, []).append(image)
    findings = [
        *_contradictions(images, options, database, shown),
        *(
            _duplicate(case, sequence, some, database, shown)
            for case, own in by_case.items()
            for sequence, some in own.items()
            if len(some) > 1 and len(_named(some)) != 1
        ),
        *_chosen(by_case, database, shown),
        *(_unknown(spelling, why, files, database) for (spelling, why), files in sorted(strange.items())),
    ]
    return Images(
        by_case={
            case: {sequence: (_named(some) or some)[0].role.file for sequence, some in own.items()}
            for case, own in by_case.items()
        },
        skipped={image.role.case for image in images} - set(by_case),
        findings=tuple(findings),
    )


def _named(images: Sequence[Image]) -> list[Image]:
    return [image for image in images if image.is_named]


def _duplicate(case: str, sequence: str, images: Sequence[Image], database: str, shown: Shown) -> Finding:
    files = [shown(image.role.file) for image in images]
    spellings = list(dict.fromkeys(image.spelling for image in images))
    if len(spellings) < len(images):  # T1.img beside T1.nii.gz
        spellings = list(dict.fromkeys(image.role.file.name for image in images))
    if len(spellings) == len(images):
        way = (
            f"Say which one to take: {' or '.join(f'--modality {spelling}={sequence}' for spelling in spellings[:4])}; "
            f"or which to leave out: --modality {spellings[-1]}=skip. Of two visits or patients? Tell them apart in a "
            "--pattern, for instance with {session} or {site}."
        )
    else:
        way = (
            "Two visits or patients of one name? Tell them apart in the pattern, for instance with {session} or "
            "{site}. One sequence twice? Leave one out by its spelling: --modality NAME=skip."
        )
    count, names = ("two", " and ".join(files)) if len(files) == 2 else (str(len(files)), listed(files))
    message = f"{count} files are {sequence} of case {case!r}: {names}. {way}"
    return Finding(Severity.ERROR, "DUPLICATE_CASE", database, case, files[-1], message)


def _chosen(by_case: Mapping[str, Mapping[str, Sequence[Image]]], database: str, shown: Shown) -> list[Finding]:
    """Which files were left out for one that the user named, by spelling."""
    left_out: dict[tuple[str, str, str], list[str]] = {}
    for sequence, some in (item for own in by_case.values() for item in own.items()):
        if len(some) > 1 and len(_named(some)) == 1:
            taken = _named(some)[0]
            for other in (image for image in some if image is not taken):
                key = (taken.spelling, sequence, other.spelling)
                left_out.setdefault(key, []).append(shown(other.role.file))
    return [
        Finding(
            Severity.NOTE, "CHOSEN_SCAN", database, "", files[0],
            f"{taken!r} is {sequence}, as asked; {other!r} is left out where both are there: {listed(files, 3)}.",
        )
        for (taken, sequence, other), files in left_out.items()
    ]  # fmt: skip


def _contradictions(images: Sequence[Image], options: SourceOptions, database: str, shown: Shown) -> list[Finding]:
    """Files whose own name is of another sequence than all are said to be."""
    findings = []
    for image in images if options.modality else ():
        file = shown(image.role.file)
        own_name = modality_of_file_name(PurePosixPath(file).name)
        told = image.sequence if image.is_named else read_role(image.role.name).sequence or own_name
        if not image.is_named and told not in (None, options.modality):
            message = (
                f"{file} reads as {told}, but --modality {options.modality} says that all are {options.modality}. "
                f"Narrow the pattern, or say what it is: --modality {image.spelling}={told}."
            )
            findings.append(Finding(Severity.ERROR, "AMBIGUOUS_NAME", database, image.role.case, file, message))
    return findings


def _unknown(spelling: str, why: str, files: Sequence[str], database: str) -> Finding:
    message = (
        f"{spelling!r} is no known sequence; {len(files)} such files are left out ({why}). "
        f"If it is one, name it: --modality {spelling}=T1; if it is a label, name it with --label; if it is "
        f"neither, say so: --modality {spelling}=skip."
    )
    return Finding(Severity.WARNING, "UNKNOWN_SEQUENCE", database, "", files[0], message)
