"""All layouts, and which of them a folder has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from multiseg.errors import SourceError, UsageError
from multiseg.own import blamed, check_takes, imported, is_own
from multiseg.store.sources import (
    bids,
    brats,
    dicom_layout,
    freesurfer,
    gandlf,
    monai_datalist,
    msd,
    multiunet,
    nnunet,
    plain,
    vsd,
    wmh2017,
)
from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, is_rater
from multiseg.store.sources.challenge_layout import challenge_layout
from multiseg.store.sources.challenges import CHALLENGES
from multiseg.store.sources.gathering import gather
from multiseg.store.sources.participants import read_participants
from multiseg.store.sources.pattern import PATTERN, is_pattern, roles_of
from multiseg.store.sources.source_folder import Folder, look_into
from multiseg.store.sources.source_types import (
    SKIP,
    DatabaseFiles,
    FoundFiles,
    Layout,
    SourceOptions,
    with_description,
    without_skipped_labels,
)

LAYOUTS: tuple[Layout, ...] = (
    brats.FROM,
    brats.UNTIL,
    *map(challenge_layout, CHALLENGES),
    nnunet.LAYOUT,
    msd.LAYOUT,
    vsd.BRATS,
    vsd.SISS,
    wmh2017.WMH_2017,
    bids.BIDS,
    freesurfer.FASTSURFER_SUBJECTS,
    freesurfer.FREESURFER_SUBJECTS,
    gandlf.LAYOUT,
    multiunet.LAYOUT,
    monai_datalist.LAYOUT,
    dicom_layout.DICOM,
    plain.FOLDERS,
)
"""The first layout that recognises a folder is used, so special layouts come before general ones."""
OwnSource: TypeAlias = Callable[[Path, SourceOptions], DatabaseFiles]
"""A custom layout: a function from a folder to whole cases."""


@dataclass(frozen=True)
class Recognised:
    """The layout of a folder, the evidence for it, and other layouts that recognise the folder."""

    layout: Layout
    evidence: str
    others: tuple[str, ...] = ()


def recognise(folder: Folder, options: SourceOptions) -> Recognised:
    """The layout of a folder: the one that the user names or describes, else the first that recognises it.

    Raises:
        UsageError: the layout's name is unknown, or --pattern is missing or given with --as.
        SourceError: no layout recognises the folder.
    """
    name = options.layout
    if options.pattern and name:
        raise UsageError(f"--as {name} and --pattern both say where files are. Give only one of them.")
    if options.pattern:
        return Recognised(PATTERN, "by your pattern")
    if options.labels:
        raise UsageError("--label gives the pattern of labels, but the pattern of images is missing. Add --pattern.")
    if is_own(name):
        return Recognised(_own_layout(name), "by your choice")
    layouts = {layout.name: layout for layout in LAYOUTS}
    if name:
        if name not in layouts:
            raise UsageError(f"unknown layout {name!r}. Layouts are {', '.join(layouts)}, and your own as module:name.")
        return Recognised(layouts[name], layouts[name].recognise(folder) or "by your choice")
    recognised = [(layout, evidence) for layout in LAYOUTS if (evidence := layout.recognise(folder))]
    if not recognised:
        raise SourceError(_describe_unknown(folder), code="UNKNOWN_LAYOUT", file=str(folder.root))
    (layout, evidence), *others = recognised
    # Nearly every folder could be plain files, so that is not worth saying.
    return Recognised(layout, evidence, tuple(other.name for other, _ in others if other is not plain.FOLDERS))


def _own_layout(name: str) -> Layout:
    """The layout that `module:name` stands for.

    Raises:
        UsageError: it cannot be imported or called as (root, options).
    """
    source: OwnSource = imported(name, "source")
    check_takes(source, 2, "source", "(root, options)", name)
    return Layout(name, "your own layout", lambda folder: "by your choice", partial(_find_by_own_source, source, name))


def _find_by_own_source(source: OwnSource, name: str, folder: Folder, options: SourceOptions) -> DatabaseFiles:
    """The database that a custom source finds.

    Raises:
        UsageError: it failed, or did not return a database.
        SourceError: it has no case, or two with one name.
    """
    with blamed("source", name):
        found = source(folder.root, options)
    if not isinstance(found, DatabaseFiles):
        raise UsageError(f"the source {name} returned a {type(found).__name__}: return multiseg.DatabaseFiles.")
    duplicates = [case for case, num in Counter(files.case for files in found.cases).items() if num > 1]
    if duplicates:
        message = f"the source {name} has two cases {duplicates[0]!r}."
        raise SourceError(message, code="DUPLICATE_CASE", file=str(folder.root))
    if not found.cases and not found.findings:
        message = f"the source {name} found no case in {folder.root}."
        raise SourceError(message, code="NOTHING_FOUND", file=str(folder.root))
    return found


def find_recognised(folder: Folder, recognised: Recognised, options: SourceOptions) -> DatabaseFiles:
    """The cases of a folder whose layout is known.

    Raises:
        DataError: the folder contradicts itself, or has no scan in its layout.
        UsageError: the options do not fit the layout or what was found.
    """
    found = recognised.layout.find(folder, options)
    if isinstance(found, DatabaseFiles):
        return with_description(found, options)
    if not found.roles:
        message = f"{folder.root} has no scans of the layout {recognised.layout.title!r}. {_describe_unknown(folder)}"
        raise SourceError(message, code="NOTHING_FOUND", file=str(folder.root))
    if options.only_images:
        found, options = _without_labels(found), replace(options, allow_unlabelled=True)
    _check_codes(found, options)
    found = _without_skipped(found, options)
    options = replace(options, codes={name: text for name, text in options.codes.items() if text != SKIP})
    if options.participants:
        rows, doubts = read_participants(folder.root / options.participants, found.database(options))
        found = replace(found, participants=rows, findings=(*found.findings, *doubts))
    if is_pattern(options.brain_mask):
        roles = [role for role in found.roles if role.kind != "brain mask"]
        masks = roles_of(folder, options.brain_mask, "brain mask", "brain mask")
        found, options = replace(found, roles=[*roles, *masks]), replace(options, brain_mask="file")
    return with_description(gather(found, options), options)


def _check_codes(found: FoundFiles, options: SourceOptions) -> None:
    """Raise UsageError if codes are given for an annotation that was not found; they would be ignored silently."""
    names = {role.name for role in found.roles if role.kind == "label"} | set(options.labels)
    if any(is_rater(name) for name in names):
        names |= {DEFAULT_ANNOTATION}
    unknown = sorted(set(options.codes) - names)
    if unknown:
        raise UsageError(
            f"--labels gives codes for {', '.join(unknown)}, but the annotations of {found.folder.root} are "
            f"{', '.join(sorted(names)) or 'none'}. Write --labels ANNOTATION:1=NAME,2=NAME."
        )


def _without_labels(found: FoundFiles) -> FoundFiles:
    return replace(found, roles=[role for role in found.roles if role.kind != "label"], schemas={}, required=())


def _without_skipped(found: FoundFiles, options: SourceOptions) -> FoundFiles:
    """Leave out the annotations of `--labels NAME:skip`."""
    skipped = {name for name, codes in options.codes.items() if codes == SKIP}
    roles = without_skipped_labels(found.roles, options.codes)
    return replace(found, roles=roles, required=[name for name in found.required if name not in skipped])


def find_source(root: Path | str, options: SourceOptions | None = None, name: str = "") -> DatabaseFiles:
    """The cases of a folder.

    Args:
        name: the layout, or your own as "module:name", instead of `options.layout`. Without either, it is recognised.
    """
    options = options or SourceOptions()
    options = replace(options, layout=name or options.layout)
    folder = look_into(Path(root))
    return find_recognised(folder, recognise(folder, options), options)


def _describe_unknown(folder: Folder) -> str:
    if not folder.files:
        return f"{folder.root} is empty. Is it the right folder, and is its disk mounted?"
    examples: Sequence[str] = (folder.volumes or folder.files)[:3]
    return (
        f"multiseg does not recognise the layout of {folder.root}, which has {len(folder.files)} files such as "
        f"{', '.join(examples)}. Say where the images are, for instance --pattern '{{case}}/{{modality}}.nii.gz' "
        "(if no name says the sequence: --pattern '{case}/{case}.nii.gz' --modality T1), or name the layout with --as."
    )


def look_at(source: Path) -> Folder:
    """A folder with all its files; for a CSV or JSON file, its folder with only that file.

    Raises:
        SourceError: it is neither a folder nor such a file.
    """
    if source.suffix.lower() in (".csv", ".json") and source.is_file():
        return Folder(source.parent, (source.name,))
    return look_into(source)


def is_listing(source: Path) -> bool:
    """Whether a file is a list of cases of GaNDLF or MONAI, and so not one of our manifests."""
    if source.suffix.lower() not in (".csv", ".json") or not source.is_file():
        return False
    folder = look_at(source)
    return any(layout.recognise(folder) for layout in (gandlf.LAYOUT, monai_datalist.LAYOUT))
