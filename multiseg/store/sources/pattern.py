"""A folder whose file names follow patterns such as "{case}/{modality}.nii.gz"."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from multiseg.errors import SourceError, UsageError
from multiseg.modalities import canonical_modality
from multiseg.store.formats.pair import is_header, other_half
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.gathering import gather
from multiseg.store.sources.participants import read_participants
from multiseg.store.sources.source_folder import Folder, look_into
from multiseg.store.sources.source_types import DatabaseFiles, Found, Role, SourceOptions

FIELDS = ("case", "subject", "session", "site", "modality")


@dataclass(frozen=True)
class PatternSource:
    """One database described by file-name patterns relative to `root`.

    Attributes:
        labels: annotation name to pattern.
        codes: annotation name to text such as "1=necrosis,2=oedema"; without it 1 is the annotation.
        brain_mask: a pattern, or what `recipe.Recipe.brain_mask` may be.
        modalities: spellings of the files to names of sequences, beside the well-known ones.
        modality: the sequence of every image, where the pattern has no {modality}.
        participants: a CSV table with a row a case; its first column names the case.
    """

    name: str
    root: Path | str
    pattern: str
    pathology: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    brain_mask: str = ""
    modalities: Mapping[str, str] = field(default_factory=dict)
    modality: str = ""
    participants: str = ""
    raters: str = "all"
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
    folder = look_into(Path(source.root))
    labels = [role for name, pattern in source.labels.items() for role in roles_of(folder, pattern, "label", name)]
    mask_pattern = source.brain_mask if is_pattern(source.brain_mask) else ""
    masks = roles_of(folder, mask_pattern, "brain mask", "brain mask") if mask_pattern else []
    taken = {role.file for role in (*labels, *masks)}
    images = [role for role in roles_of(folder, source.pattern, "image", "") if role.file not in taken]
    if not (images or labels):
        raise SourceError(
            f"none of the {len(folder.files)} files below {source.root} fits the pattern {source.pattern!r}. "
            f"Such a file would be {_example(source.pattern)!r}.",
            code="NOTHING_FOUND",
            file=str(source.root),
        )
    for name in source.codes:
        if name not in source.labels:
            raise UsageError(f"codes are given for the annotation {name!r}, but no --label {name}=... names its files.")
    rows, doubts = (
        read_participants(Path(source.root) / source.participants, source.name) if source.participants else ({}, ())
    )
    found = Found(
        name=source.name,
        folder=folder,
        roles=[*images, *labels, *masks],
        schemas={name: schema_for(name, source.codes.get(name, "")) for name in source.labels},
        required=tuple(source.labels),
        may_lack_labels=() if source.labels else {role.case for role in images},
        free_names=True,
        participants=rows,
        findings=doubts,
        licence=source.licence,
        citation=source.citation,
        source=source.source,
    )
    mask_rule = "file" if mask_pattern else source.brain_mask
    options = SourceOptions(
        pathology=source.pathology, modalities=source.modalities, modality=_of_all(source),
        participants=source.participants, brain_mask=mask_rule, raters=source.raters,
        allow_unlabelled=source.allow_unlabelled,
    )  # fmt: skip
    return gather(found, options)


def _of_all(source: PatternSource) -> str:
    """The sequence of every image, by its canonical name.

    Raises:
        UsageError: it is no known sequence, or the pattern says it of each image.
    """
    if not source.modality:
        return ""
    name = canonical_modality(source.modality)
    if name is None:
        raise UsageError(
            f"--modality {source.modality} says what all images are, but is no known sequence. Write one such as T1, "
            "or what an unusual spelling means: NAME=T1, NAME=skip."
        )
    if "{modality}" in source.pattern:
        raise UsageError(
            f"--modality {name} says what all images are, but the pattern {source.pattern!r} says it of each by "
            f"{{modality}}. Write what an unusual spelling means: NAME={name}; or a pattern without {{modality}}."
        )
    return name


def is_pattern(text: str) -> bool:
    """Whether a text is a file-name pattern with at least one {field}."""
    return "{" in text and not text.startswith("command ")


def roles_of(folder: Folder, pattern: str, kind: Literal["image", "label", "brain mask"], name: str) -> list[Role]:
    """The files of a folder that fit a pattern, each in this role to the case that the pattern tells.

    Raises:
        UsageError: the pattern cannot be meant.
    """
    roles = []
    matches = {match[0]: match for match in folder.fitting(compile_pattern(pattern))}
    for match in (match for file, match in matches.items() if not _is_said(folder, file, matches)):
        fields = {key: text for key, text in match.groupdict().items() if key not in ("modality", "case")}
        file = match[0]
        spelling = match.groupdict().get("modality", "") or Path(file).name.split(".")[0]
        case = _case_name(match.groupdict())
        roles.append(Role(case, kind, name or spelling, folder.path(file), fields))
    return roles


def _is_said(folder: Folder, file: str, files: Collection[str]) -> bool:
    """Whether a file is the header of a pair of which the voxels (.img) are among the files."""
    other = other_half(folder.path(file)) if is_header(folder.path(file)) else None
    return other is not None and other.relative_to(folder.root).as_posix() in files


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
