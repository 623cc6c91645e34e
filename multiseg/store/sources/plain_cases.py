"""Which volumes of a folder are one case's, where only the folders and names tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from multiseg.modalities import canonical_modality
from multiseg.store.sources.file_words import What, is_known, meaning_of, split_name
from multiseg.store.sources.source_folder import Folder

_VISIT = re.compile(
    r"(?:ses|session|visit|time|timepoint|tp|scan|exam)[-_]?\w*|t\d+|m\d+|baseline|follow-?up\w*|\d{8}", re.I
)
"""Names of folders of visits of a person."""

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Volume:
    """A file of a case; `stem` is its name without the case's and without suffix, `place` the case's folder."""

    case: str
    stem: str
    file: str
    fields: Mapping[str, str] = field(default_factory=dict, compare=False)
    place: Parts = field(default=(), compare=False)


def volumes_in(folder: Folder) -> list[Volume]:
    """Every volume with its case: the deepest level of folders at which most folders hold a sequence.

    With images/ and labels/ inside a case's folder the case is the one above. Files that lie above that level
    belong to no case, and flat files only where their names end in what they are. Names that leave open which
    sequence they are tell the level where no others do.
    """
    paths = [PurePosixPath(file) for file in folder.volumes]
    depth = max((len(path.parts) - 1 for path in paths), default=0)
    levels = [_at_level(paths, level) for level in range(depth, 0, -1)]
    best = _best(levels, _has_one_file) or _best(levels, _has_plain_name) or _best(levels, _has_open_name)
    return best if depth else _flat(paths, folder.name)


def beside_visits(folder: Folder, volumes: Sequence[Volume]) -> list[Volume]:
    """Files that lie in a person's folder, beside those of the visits: they belong to the person, and to no visit.

    A folder with several cases in it is a person's where these are named as visits; with one case it is that case's.
    """
    inside: dict[Parts, dict[str, Volume]] = {}
    for volume in volumes:
        if len(volume.place) > 1:
            inside.setdefault(volume.place[:-1], {})[volume.case] = volume
    found = []
    for path in map(PurePosixPath, folder.volumes):
        visits = list(inside.get(path.parent.parts, {}).values())
        stem = without_suffix(path.name)
        if visits and visits[0].fields:
            subject = {"subject": visits[0].fields["subject"]}
            found.append(Volume(path.parent.as_posix(), stem, path.as_posix(), subject))
        elif len(visits) == 1:
            found.append(Volume(visits[0].case, stem, path.as_posix()))
    return found


def _best(levels: Sequence[list[Volume]], is_good: Callable[[Mapping[str, Sequence[str]]], bool]) -> list[Volume]:
    """The level at which most cases are good, more than half of them; of equal ones the first."""
    shares = [_share(volumes, is_good) for volumes in levels]
    most = max(shares, default=0.0)
    return levels[shares.index(most)] if most > 0.5 else []


def _at_level(paths: Sequence[PurePosixPath], level: int) -> list[Volume]:
    by_case: dict[Parts, list[PurePosixPath]] = {}
    for path in paths:
        if len(path.parts) > level:
            by_case.setdefault(path.parts[:level], []).append(path)
    names = _short_names(sorted(by_case))
    several = len({parts[-1] for parts in names}) > 1
    fields = {parts: _person(parts) if several else {} for parts in by_case}
    return [
        Volume(names[parts], stem, path.as_posix(), fields[parts], parts)
        for parts, own in by_case.items()
        for path, stem in zip(own, _stems([path.parts[level:] for path in own], (names[parts], *parts)), strict=True)
    ]


def _short_names(folders: Sequence[Parts]) -> dict[Parts, str]:
    """Names of cases from folders: without what all have in common at their ends."""
    if len(folders) < 2:
        return {parts: parts[-1] for parts in folders}
    varies = [len(set(column)) > 1 for column in zip(*folders, strict=True)]
    first, last = varies.index(True), len(varies) - varies[::-1].index(True)
    return {parts: "_".join(parts[first:last]) for parts in folders}


def _person(parts: Parts) -> dict[str, str]:
    """Subject and session where a case's folder is called as visits are, and its parent is the person's."""
    if len(parts) < 2 or not _VISIT.fullmatch(parts[-1]):
        return {}
    return {"subject": parts[-2], "session": parts[-1]}


def _stems(names: Sequence[Parts], cases: Sequence[str]) -> list[str]:
    """File names without suffix, without their case's name, and without what all of a case begin with."""
    stems = ["_".join(_without(part, cases) for part in (*parts[:-1], without_suffix(parts[-1]))) for parts in names]
    words = [re.split(r"(?<=[-_. +])", stem) for stem in stems]
    own = 0
    for alike in zip(*words, strict=False):
        if len(words) < 2 or len(set(alike)) > 1 or is_known(alike[0].strip("-_. +")):
            break
        own += 1
    return ["".join(some[own:]) or stem for some, stem in zip(words, stems, strict=True)]


def _without(stem: str, names: Sequence[str]) -> str:
    for name in names:
        if stem.startswith(name) and stem != name:
            return stem.removeprefix(name).lstrip("-_. ") or stem
    return stem


def _flat(paths: Sequence[PurePosixPath], own_name: str) -> list[Volume]:
    """Flat files: of one case, that of the folder, where names begin with no case's."""
    split = [(path, *_case_and_role(without_suffix(path.name))) for path in paths]
    if any(not case for _, case, _ in split):
        return [Volume(own_name, without_suffix(path.name), path.name) for path in paths]
    cases = {case for _, case, stem in split if stem}
    for at, (path, name, stem) in enumerate(split):
        beginnings = [] if stem else [name[: separator.start()] for separator in re.finditer("[-_. +]", name)]
        case = next((beginning for beginning in reversed(beginnings) if beginning in cases), "")
        if case:
            split[at] = (path, case, name[len(case) + 1 :])
    return [Volume(case, stem, path.name) for path, case, stem in split if stem]


def _case_and_role(stem: str) -> tuple[str, str]:
    """As `split_name`; where a name ends in words that nobody knows, its role begins with the first known one."""
    case, role = split_name(stem)
    if role:
        return case, role
    starts = [match for match in re.finditer(r"(?<=[-_. +])[^-_. +]+", stem) if is_known(match[0])]
    if not starts:
        return case, role
    end = stem[starts[0].start() :]
    meaning = meaning_of(end)
    is_open = meaning.what is What.UNCLEAR and bool(meaning.named)
    return (stem[: starts[0].start() - 1], end) if is_open else (case, role)


def without_suffix(name: str) -> str:
    """A name up to the suffix of a volume.

    >>> without_suffix("sub.01_T1.nii.gz")
    'sub.01_T1'
    """
    stem, _, suffix = name.rpartition(".")
    while suffix.lower() == "gz":
        stem, _, suffix = stem.rpartition(".")
    return stem


def _share(volumes: Sequence[Volume], is_good: Callable[[Mapping[str, Sequence[str]]], bool]) -> float:
    """The share of good cases, each judged by the stems of its files by sequence; "" where that is open."""
    stems: dict[str, dict[str, list[str]]] = {}
    for volume in volumes:
        meaning, own = meaning_of(volume.stem), stems.setdefault(volume.case, {})
        if meaning.what is What.IMAGE or (meaning.what is What.UNCLEAR and meaning.named):
            own.setdefault(meaning.name, []).append(volume.stem)
    return sum(map(is_good, stems.values())) / len(stems) if stems else 0.0


def _has_one_file(stems: Mapping[str, Sequence[str]]) -> bool:
    """Whether a case has a sequence of which there is but one file."""
    return any(len(own) == 1 for name, own in stems.items() if name)


def _has_plain_name(stems: Mapping[str, Sequence[str]]) -> bool:
    """Whether a case has that, or a sequence in several files, of which a name begins with it: T1, T1_brain, T1_bet.

    "pat1_T1" beside "pat2_T1" are files of two cases.
    """
    begins = (re.split(r"[-_. +]", stem)[0] for name, own in stems.items() if name for stem in own)
    return _has_one_file(stems) or any(map(canonical_modality, begins))


def _has_open_name(stems: Mapping[str, Sequence[str]]) -> bool:
    """Whether a case has a file whose name speaks of sequences and leaves open which it is."""
    return "" in stems
