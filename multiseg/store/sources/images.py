"""Which file of a case is which sequence, and which files the user leaves out.

The sequence of a file is that of `--modality SPELLING=NAME` for its name ("T1.img") or spelling ("T1"), else the one
that its spelling says, else that of `--modality NAME` for all files. If several files of a case are one sequence (T1
and T1_brain), the one that the user named is used and the others are left out with a note; if none is named, that is
an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from multiseg.errors import UsageError, counted, few
from multiseg.modalities import canonical_modality, modality_of_file_name
from multiseg.sequence_reading import read_role
from multiseg.store.cases import LabelFile, ScanFile, Series
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_folder import grouped
from multiseg.store.sources.source_types import SKIP, FoundFiles, Role, SourceOptions, finding

Shown = Callable[[LabelFile], str]
"""A file's name for a message."""


@dataclass(frozen=True)
class Image:
    """A file, its sequence (None: unknown; SKIP: left out), and whether the user named exactly its spelling.

    `why` is the reason for an unknown sequence.
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
    """The images of every case by sequence; `skipped` are the cases whose images the user skips, all of them."""

    by_case: Mapping[str, Mapping[str, ScanFile]]
    skipped: Collection[str]
    findings: tuple[Finding, ...]


def check_spellings(found: FoundFiles, options: SourceOptions) -> None:
    """Check that every spelling of --modality is that of a file, since a mistyped one would have no effect.

    DICOM series have names of their own, which their layout checks.

    Raises:
        UsageError: no file has such a spelling.
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
            f"--modality names {', '.join(map(repr, unknown))}, but no file of {found.folder.root} has such a name. "
            f"Names there: {few(spellings, 20) or 'none'}."
        )


def read_images(roles: Sequence[Role], options: SourceOptions) -> list[Image]:
    """The sequence of every image."""
    images = [role for role in roles if role.kind == "image"]
    spellings = {role.spelling or role.name for role in images}
    return [_image(role, spellings, options) for role in images]


def _image(role: Role, spellings: Collection[str], options: SourceOptions) -> Image:
    spelling, given = role.spelling or role.name, options.modalities
    # The role's name does not count as this file's spelling if it is another file's: T1_brain, where there is a T1.
    names = [role.file.name, spelling, *(() if role.name in spellings else (role.name,))]
    named = next((name for name in names if name in given), None)
    if named is not None:
        target = SKIP if given[named] == SKIP else canonical_modality(given[named]) or given[named]
        return Image(role, target, is_named=named in names[:2])
    reading = read_role(role.name)
    sequence = reading.sequence or (canonical_modality(role.name) if reading.is_vague else None)
    if role.doubt:
        return Image(role, None, is_named=False, why=role.doubt)
    default = canonical_modality(options.modality) or options.modality
    if sequence is None and reading.is_vague and set(reading.named) <= {default}:
        sequence = default or None  # without a default the file stays unknown
    return Image(role, sequence, is_named=False, why=reading.why)


def choose_images(images: Sequence[Image], options: SourceOptions, shown: Shown) -> Images:
    """One file for each sequence of each case; what is ambiguous becomes a finding."""
    used = [image for image in images if image.sequence != SKIP]
    unknown = grouped((image for image in used if image.sequence is None), lambda image: (image.spelling, image.why))
    by_case = {
        case: grouped((image for image in of_case if image.sequence is not None), lambda image: str(image.sequence))
        for case, of_case in grouped(used, lambda image: image.role.case).items()
    }
    groups = [(case, *group) for case, sequences in by_case.items() for group in sequences.items()]
    several = [(case, sequence, candidates) for case, sequence, candidates in groups if len(candidates) > 1]
    findings = [
        *_contradictions(images, options, shown),
        *(_duplicate(*group, shown) for group in several if len(_named(group[2])) != 1),
        *_chosen([group for group in several if len(_named(group[2])) == 1], shown),
        *(_unknown(*key, [shown(image.role.file) for image in unknown[key]]) for key in sorted(unknown)),
    ]
    chosen: dict[str, dict[str, ScanFile]] = {case: {} for case in by_case}
    for case, sequence, candidates in groups:
        chosen[case][sequence] = (_named(candidates) or candidates)[0].role.file
    return Images(chosen, {image.role.case for image in images} - set(by_case), tuple(findings))


def _named(images: Sequence[Image]) -> list[Image]:
    return [image for image in images if image.is_named]


def _duplicate(case: str, sequence: str, images: Sequence[Image], shown: Shown) -> Finding:
    files = [shown(image.role.file) for image in images]
    spellings = list(dict.fromkeys(image.spelling for image in images))
    if len(spellings) < len(images):  # T1.img beside T1.nii.gz
        spellings = list(dict.fromkeys(image.role.file.name for image in images))
    if len(spellings) == len(images):
        advice = (
            f"Choose one: {' or '.join(f'--modality {spelling}={sequence}' for spelling in spellings[:4])}; or leave "
            f"one out: --modality {spellings[-1]}=skip. If they are two visits or patients, tell them apart in a "
            "--pattern, for instance with {session} or {site}."
        )
    else:
        advice = (
            "If they are two visits or patients, tell them apart in the pattern, for instance with {session} or "
            "{site}. If they are one sequence twice, leave one out by its spelling: --modality NAME=skip."
        )
    count, names = ("two", " and ".join(files)) if len(files) == 2 else (str(len(files)), few(files))
    message = f"{count} files are {sequence} of case {case!r}: {names}. {advice}"
    return finding(Severity.ERROR, "DUPLICATE_CASE", message, case, files[-1])


def _chosen(groups: Sequence[tuple[str, str, Sequence[Image]]], shown: Shown) -> Iterator[Finding]:
    """Notes of the files that were left out in favour of one that the user named."""
    left_out: dict[tuple[str, str, str], list[str]] = {}
    for _, sequence, candidates in groups:
        (taken,) = _named(candidates)
        for other in (image for image in candidates if image is not taken):
            left_out.setdefault((taken.spelling, sequence, other.spelling), []).append(shown(other.role.file))
    for (spelling, sequence, other_spelling), files in left_out.items():
        what = f"{spelling!r} is {sequence}, by --modality; {other_spelling!r} is left out if both exist"
        yield finding(Severity.NOTE, "CHOSEN_SCAN", f"{what}: {few(files, 3)}.", file=files[0])


def _contradictions(images: Sequence[Image], options: SourceOptions, shown: Shown) -> Iterator[Finding]:
    """Files whose name says another sequence than --modality says of all."""
    for image in images if options.modality else ():
        file = shown(image.role.file)
        sequence = read_role(image.role.name).sequence or modality_of_file_name(PurePosixPath(file).name)
        if not image.is_named and sequence not in (None, options.modality):
            message = (
                f"{file} reads as {sequence}, but --modality {options.modality} says that all are {options.modality}. "
                f"Narrow the pattern, or name this file's sequence: --modality {image.spelling}={sequence}."
            )
            yield finding(Severity.ERROR, "AMBIGUOUS_NAME", message, image.role.case, file)


def _unknown(spelling: str, why: str, files: Sequence[str]) -> Finding:
    message = (
        f"{spelling!r} is not a known sequence; {counted(len(files), 'such file')} "
        f"{'is' if len(files) == 1 else 'are'} left out ({why}). "
        f"If it is a sequence, name it: --modality {spelling}=T1; if it is a label, use --label; if it is neither: "
        f"--modality {spelling}=skip."
    )
    return finding(Severity.WARNING, "UNKNOWN_SEQUENCE", message, file=files[0])
