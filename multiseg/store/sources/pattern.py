"""A folder whose file names follow patterns such as "{case}/{modality}.nii.gz"."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from multiseg.errors import SourceError, UsageError
from multiseg.modalities import canonical_modality
from multiseg.store.formats.pair import is_header, other_half
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, RoleKind, SourceOptions

FIELDS = ("case", "subject", "session", "site", "modality")


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    """The files that match the user's patterns.

    Raises:
        SourceError: no file matches.
        UsageError: a pattern, or the codes or the sequence given with it, is invalid.
    """
    _check_modality(options)
    labels = [role for name, pattern in options.labels.items() for role in roles_of(folder, pattern, "label", name)]
    # `find_recognised` adds the roles of masks; here they are only excluded from the images.
    masks = roles_of(folder, options.brain_mask, "brain mask", "") if is_pattern(options.brain_mask) else []
    taken = {role.file for role in (*labels, *masks)}
    images = [role for role in roles_of(folder, options.pattern, "image", "") if role.file not in taken]
    if not (images or labels):
        message = (
            f"none of the {len(folder.files)} files in {folder.root} matches the pattern {options.pattern!r}. "
            f"It would match, for instance, {_example(options.pattern)!r}."
        )
        raise SourceError(message, code="NOTHING_FOUND", file=str(folder.root))
    for name in options.codes:
        if name not in options.labels:
            raise UsageError(f"codes are given for the annotation {name!r}, but no --label {name}=... names its files.")
    return FoundFiles(
        folder=folder,
        roles=[*images, *labels],
        schemas={name: schema_for(name, options.codes.get(name, "")) for name in options.labels},
        required=tuple(options.labels),
        may_lack_labels=() if options.labels else {role.case for role in images},
        free_names=True,
        raters="all",
    )


PATTERN = Layout("pattern", "files named by a pattern", lambda folder: "", _find)
"""The layout of a source with `SourceOptions.pattern`, which the user describes, so it recognises no folder."""


def _check_modality(options: SourceOptions) -> None:
    """Check the sequence that the user gives for every image, if any.

    Raises:
        UsageError: it is not a known sequence, or the pattern already says each image's sequence.
    """
    if not options.modality:
        return
    name = canonical_modality(options.modality)
    if name is None:
        raise UsageError(
            f"--modality {options.modality} is not a known sequence. Write one such as T1 for all images, or what an "
            "unusual spelling means: NAME=T1, NAME=skip."
        )
    if "{modality}" in options.pattern:
        raise UsageError(
            f"--modality {name} is for all images, but the pattern {options.pattern!r} says each image's sequence by "
            f"{{modality}}. Write what an unusual spelling means: NAME={name}; or a pattern without {{modality}}."
        )


def is_pattern(text: str) -> bool:
    """Whether a text is a file-name pattern with at least one {field}."""
    return "{" in text and not text.startswith("command ")


def roles_of(folder: Folder, pattern: str, kind: RoleKind, name: str) -> list[Role]:
    """The files of a folder that match a pattern, each with this role in the case that the pattern says.

    Raises:
        UsageError: the pattern is invalid.
    """
    roles = []
    matches = {match[0]: match for match in folder.matches(compile_pattern(pattern))}
    for match in (match for file, match in matches.items() if not _is_header_of_pair(folder, file, matches)):
        fields = {key: text for key, text in match.groupdict().items() if key not in ("modality", "case")}
        file = match[0]
        spelling = match.groupdict().get("modality", "") or Path(file).name.split(".")[0]
        case = _case_name(match.groupdict())
        roles.append(Role(case, kind, name or spelling, folder.path(file), fields))
    return roles


def _is_header_of_pair(folder: Folder, file: str, files: Collection[str]) -> bool:
    """Whether a file is the header of a pair whose voxels (.img) are among the files."""
    other = other_half(folder.path(file)) if is_header(folder.path(file)) else None
    return other is not None and other.relative_to(folder.root).as_posix() in files


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression for a whole relative path; {field} matches text without '/'.

    Raises:
        UsageError: a field is unknown, or no field says the case.
    """
    expression, seen = "", set()
    if re.search(r"[{}]", re.sub(r"\{\w+\}", "", pattern)):
        raise UsageError(f"the pattern {pattern!r} has an extra brace, or a field that is not one word.")
    for text, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", pattern):
        expression += re.escape(text).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        if name and name not in FIELDS:
            raise UsageError(f"the pattern {pattern!r} has a field {{{name}}}; fields are {', '.join(FIELDS)}.")
        if name:
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
    if not seen & {"case", "subject"}:
        raise UsageError(f"the pattern {pattern!r} does not say the case. Add {{case}}.")
    return re.compile(expression)


def _example(pattern: str) -> str:
    return pattern.format(case="case01", subject="01", session="1", site="A", modality="T1")


def _case_name(fields: Mapping[str, str]) -> str:
    return fields.get("case") or "_".join(fields[key] for key in ("subject", "session") if key in fields)
