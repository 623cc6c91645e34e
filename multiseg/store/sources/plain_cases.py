"""Which volumes of a folder are one case, by the names of folders and files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from multiseg.modalities import canonical_modality
from multiseg.store.sources.file_words import What, is_known, meaning_of, split_name
from multiseg.store.sources.source_folder import Folder, grouped

_VISIT = re.compile(
    r"(?:ses|session|visit|time|timepoint|tp|scan|exam)[-_]?\w*|t\d+|m\d+|baseline|follow-?up\w*|\d{8}", re.I
)
"""Names of folders of visits."""

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Volume:
    """A file of a case; `stem` is its name without the case and the suffix, `place` the case's folder."""

    case: str
    stem: str
    file: str
    fields: Mapping[str, str] = field(default_factory=dict, compare=False)
    place: Parts = field(default=(), compare=False)


def volumes_in(folder: Folder) -> list[Volume]:
    """Every volume with its case, which is a folder of the deepest level at which most folders have a sequence.

    With images/ and labels/ in a case's folder, that folder is the case. Files above that level belong to no case, and
    flat files only if their names end in what they are. Names with an unclear sequence decide the level only if no
    others do.
    """
    paths = [PurePosixPath(file) for file in folder.volumes]
    depth = max((len(path.parts) - 1 for path in paths), default=0)
    levels = [_at_level(paths, level) for level in range(depth, 0, -1)]
    best = _best(levels, _has_one_file) or _best(levels, _has_plain_name) or _best(levels, _has_open_name)
    return best if depth else _flat(paths, folder.name)


def files_of_subjects(folder: Folder, volumes: Sequence[Volume]) -> list[Volume]:
    """Files in a subject's folder next to the folders of visits: they belong to the subject, not to a visit.

    A folder with several cases is a subject's if these are named as visits; a folder with one case is that case's.
    """
    by_parent: dict[Parts, dict[str, Volume]] = {}
    for volume in volumes:
        if len(volume.place) > 1:
            by_parent.setdefault(volume.place[:-1], {})[volume.case] = volume
    files = []
    for path in map(PurePosixPath, folder.volumes):
        visits = list(by_parent.get(path.parent.parts, {}).values())
        stem = without_suffix(path.name)
        if visits and visits[0].fields:
            subject = {"subject": visits[0].fields["subject"]}
            files.append(Volume(path.parent.as_posix(), stem, path.as_posix(), subject))
        elif len(visits) == 1:
            files.append(Volume(visits[0].case, stem, path.as_posix()))
    return files


def _best(levels: Sequence[list[Volume]], is_good: Callable[[Mapping[str, Sequence[str]]], bool]) -> list[Volume]:
    """The level with the largest share of good cases, if that is more than half; the first of equal levels."""
    shares = [_share(volumes, is_good) for volumes in levels]
    most = max(shares, default=0.0)
    return levels[shares.index(most)] if most > 0.5 else []


def _at_level(paths: Sequence[PurePosixPath], level: int) -> list[Volume]:
    by_case = grouped((path for path in paths if len(path.parts) > level), lambda path: path.parts[:level])
    names = _short_names(sorted(by_case))
    several = len({parts[-1] for parts in names}) > 1
    fields = {parts: _visit_fields(parts) if several else {} for parts in by_case}
    volumes = []
    for parts, files in by_case.items():
        stems = _stems([path.parts[level:] for path in files], (names[parts], *parts))
        named = zip(files, stems, strict=True)
        volumes += [Volume(names[parts], stem, path.as_posix(), fields[parts], parts) for path, stem in named]
    return volumes


def _short_names(folders: Sequence[Parts]) -> dict[Parts, str]:
    """Names of cases from folders, without what all have in common at both ends."""
    if len(folders) < 2:
        return {parts: parts[-1] for parts in folders}
    varies = [len(set(column)) > 1 for column in zip(*folders, strict=True)]
    first, last = varies.index(True), len(varies) - varies[::-1].index(True)
    return {parts: "_".join(parts[first:last]) for parts in folders}


def _visit_fields(parts: Parts) -> dict[str, str]:
    """Subject and session if a case's folder is named as a visit; then its parent folder is the subject's."""
    if len(parts) < 2 or not _VISIT.fullmatch(parts[-1]):
        return {}
    return {"subject": parts[-2], "session": parts[-1]}


def _stems(names: Sequence[Parts], cases: Sequence[str]) -> list[str]:
    """File names without suffix, case name, and the words that all files of the case begin with."""
    stems = ["_".join(_without(part, cases) for part in (*parts[:-1], without_suffix(parts[-1]))) for parts in names]
    words = [re.split(r"(?<=[-_. +])", stem) for stem in stems]
    num_shared = 0
    for column in zip(*words, strict=False):
        if len(words) < 2 or len(set(column)) > 1 or is_known(column[0].strip("-_. +")):
            break
        num_shared += 1
    return ["".join(own_words[num_shared:]) or stem for own_words, stem in zip(words, stems, strict=True)]


def _without(stem: str, names: Sequence[str]) -> str:
    for name in names:
        if stem.startswith(name) and stem != name:
            return stem.removeprefix(name).lstrip("-_. ") or stem
    return stem


def _flat(paths: Sequence[PurePosixPath], folder_name: str) -> list[Volume]:
    """Flat files by the case in their names; if one has none, all belong to one case, named as the folder."""
    split = [(path, *_case_and_role(without_suffix(path.name))) for path in paths]
    if any(not case for _, case, _ in split):
        return [Volume(folder_name, without_suffix(path.name), path.name) for path in paths]
    cases = {case for _, case, stem in split if stem}
    for index, (path, name, stem) in enumerate(split):
        beginnings = [] if stem else [name[: separator.start()] for separator in re.finditer("[-_. +]", name)]
        case = next((beginning for beginning in reversed(beginnings) if beginning in cases), "")
        if case:
            split[index] = (path, case, name[len(case) + 1 :])
    return [Volume(case, stem, path.name) for path, case, stem in split if stem]


def _case_and_role(stem: str) -> tuple[str, str]:
    """As `split_name`, but if a name ends in unknown words, its role begins with the first known word."""
    case, role = split_name(stem)
    if role:
        return case, role
    starts = [match for match in re.finditer(r"(?<=[-_. +])[^-_. +]+", stem) if is_known(match[0])]
    if not starts:
        return case, role
    end = stem[starts[0].start() :]
    meaning = meaning_of(end)
    is_unclear_image = meaning.what is What.UNCLEAR and bool(meaning.named)
    return (stem[: starts[0].start() - 1], end) if is_unclear_image else (case, role)


def without_suffix(name: str) -> str:
    """A name up to the suffix of a volume.

    >>> without_suffix("sub.01_T1.nii.gz")
    'sub.01_T1'
    """
    stem, _, suffix = name.rpartition(".")
    while suffix.lower() in ("gz", "zarr"):
        stem, _, suffix = stem.rpartition(".")
    return stem


def _share(volumes: Sequence[Volume], is_good: Callable[[Mapping[str, Sequence[str]]], bool]) -> float:
    """The share of good cases, each judged by its files' stems by sequence; "" is an unclear sequence."""
    stems: dict[str, dict[str, list[str]]] = {}
    for volume in volumes:
        meaning, of_case = meaning_of(volume.stem), stems.setdefault(volume.case, {})
        if meaning.what is What.IMAGE or (meaning.what is What.UNCLEAR and meaning.named):
            of_case.setdefault(meaning.name, []).append(volume.stem)
    return sum(map(is_good, stems.values())) / len(stems) if stems else 0.0


def _has_one_file(stems: Mapping[str, Sequence[str]]) -> bool:
    """Whether a case has a sequence with only one file."""
    return any(len(names) == 1 for sequence, names in stems.items() if sequence)


def _has_plain_name(stems: Mapping[str, Sequence[str]]) -> bool:
    """As `_has_one_file`, or a sequence in several files of which one begins with it: T1, T1_brain, T1_bet.

    "pat1_T1" and "pat2_T1" are files of two cases.
    """
    begins = (re.split(r"[-_. +]", stem)[0] for sequence, names in stems.items() if sequence for stem in names)
    return _has_one_file(stems) or any(map(canonical_modality, begins))


def _has_open_name(stems: Mapping[str, Sequence[str]]) -> bool:
    """Whether a case has a file whose name has words of sequences, but does not say which it is."""
    return "" in stems
