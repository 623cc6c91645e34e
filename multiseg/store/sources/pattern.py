"""A folder whose file names follow patterns such as "{case}/{modality}.nii.gz"."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from multiseg.errors import SourceError, UsageError
from multiseg.modalities import canonical_modality
from multiseg.store.formats.pair import is_header, other_half
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import Found, Layout, Role, SourceOptions

FIELDS = ("case", "subject", "session", "site", "modality")


def _find(folder: Folder, options: SourceOptions) -> Found:
    """The files that fit the user's patterns.

    Raises:
        SourceError: no file does.
        UsageError: a pattern, or the codes or the sequence given with it, is invalid.
    """
    _check_modality(options)
    labels = [role for name, pattern in options.labels.items() for role in roles_of(folder, pattern, "label", name)]
    # `find_recognised` gives the masks their role; here they only are no images.
    masks = roles_of(folder, options.brain_mask, "brain mask", "") if is_pattern(options.brain_mask) else []
    taken = {role.file for role in (*labels, *masks)}
    images = [role for role in roles_of(folder, options.pattern, "image", "") if role.file not in taken]
    if not (images or labels):
        raise SourceError(
            f"none of the {len(folder.files)} files below {folder.root} fits the pattern {options.pattern!r}. "
            f"Such a file would be {_example(options.pattern)!r}.",
            code="NOTHING_FOUND",
            file=str(folder.root),
        )
    for name in options.codes:
        if name not in options.labels:
            raise UsageError(f"codes are given for the annotation {name!r}, but no --label {name}=... names its files.")
    return Found(
        name=folder.name,
        folder=folder,
        roles=[*images, *labels],
        schemas={name: schema_for(name, options.codes.get(name, "")) for name in options.labels},
        required=tuple(options.labels),
        may_lack_labels=() if options.labels else {role.case for role in images},
        free_names=True,
        raters="all",
    )


PATTERN = Layout("pattern", "files named by a pattern", lambda folder: "", _find)
"""The layout of a source with `SourceOptions.pattern`: the user describes it, so no folder is recognised as one."""


def _check_modality(options: SourceOptions) -> None:
    """Whether every image can be of the one sequence that the user gives, if any.

    Raises:
        UsageError: it is no known sequence, or the pattern says it of each image.
    """
    if not options.modality:
        return
    name = canonical_modality(options.modality)
    if name is None:
        raise UsageError(
            f"--modality {options.modality} says what all images are, but is no known sequence. Write one such as T1, "
            "or what an unusual spelling means: NAME=T1, NAME=skip."
        )
    if "{modality}" in options.pattern:
        raise UsageError(
            f"--modality {name} says what all images are, but the pattern {options.pattern!r} says it of each by "
            f"{{modality}}. Write what an unusual spelling means: NAME={name}; or a pattern without {{modality}}."
        )


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
    for match in (match for file, match in matches.items() if not _is_header_of_pair(folder, file, matches)):
        fields = {key: text for key, text in match.groupdict().items() if key not in ("modality", "case")}
        file = match[0]
        spelling = match.groupdict().get("modality", "") or Path(file).name.split(".")[0]
        case = _case_name(match.groupdict())
        roles.append(Role(case, kind, name or spelling, folder.path(file), fields))
    return roles


def _is_header_of_pair(folder: Folder, file: str, files: Collection[str]) -> bool:
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
