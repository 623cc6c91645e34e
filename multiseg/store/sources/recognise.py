"""What a folder is: the layouts we know, and telling them apart by looking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multiseg.errors import SourceError, UsageError
from multiseg.own import is_own
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
from multiseg.store.sources.own_layout import own_layout
from multiseg.store.sources.participants import read_participants
from multiseg.store.sources.pattern import PATTERN, is_pattern, roles_of
from multiseg.store.sources.source_folder import Folder, look_into
from multiseg.store.sources.source_types import (
    SKIP,
    DatabaseFiles,
    Found,
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
"""The more special a layout, the earlier it stands: a folder is what the first one recognises."""


@dataclass(frozen=True)
class Recognised:
    """What a folder was taken for, why, and what else it might be."""

    layout: Layout
    evidence: str
    others: tuple[str, ...] = ()


def recognise(folder: Folder, options: SourceOptions) -> Recognised:
    """The layout of a folder: the one that the user names or describes, else the first that looks like it.

    Raises:
        UsageError: there is no layout of that name, or a pattern is given beside it or lacks.
        SourceError: no layout looks like this folder.
    """
    name = options.layout
    if options.pattern and name:
        raise UsageError(f"--as {name} looks for files its own way, and --pattern says where they lie: keep one.")
    if options.pattern:
        return Recognised(PATTERN, "as described")
    if options.labels:
        raise UsageError("--label says where labels lie, so say where the images lie, too: --pattern.")
    if is_own(name):
        return Recognised(own_layout(name), "as asked")
    known = {layout.name: layout for layout in LAYOUTS}
    if name:
        if name not in known:
            raise UsageError(f"there is no layout {name!r}; layouts are {', '.join(known)}, and your own module:name.")
        return Recognised(known[name], known[name].recognise(folder) or "as asked")
    seen = [(layout, evidence) for layout in LAYOUTS if (evidence := layout.recognise(folder))]
    if not seen:
        raise SourceError(_what_is_there(folder), code="UNKNOWN_LAYOUT", file=str(folder.root))
    (layout, evidence), *others = seen
    # Plain files are what nearly every folder could be, so that is no news.
    return Recognised(layout, evidence, tuple(other.name for other, _ in others if other is not plain.FOLDERS))


def find_recognised(folder: Folder, recognised: Recognised, options: SourceOptions) -> DatabaseFiles:
    """The cases of a folder that was recognised.

    Raises:
        DataError: the folder contradicts itself, or holds nothing of what its layout promises.
        UsageError: the options do not fit the layout or what was found.
    """
    found = recognised.layout.find(folder, options)
    if isinstance(found, DatabaseFiles):
        return with_description(found, options)
    if not found.roles:
        raise SourceError(
            f"{folder.root} holds no scan where {recognised.layout.title} has them. {_what_is_there(folder)}",
            code="NOTHING_FOUND",
            file=str(folder.root),
        )
    _check_codes(found, options)
    found = _without_skipped(found, options)
    options = replace(options, codes={name: text for name, text in options.codes.items() if text != SKIP})
    if options.participants:
        rows, doubts = read_participants(folder.root / options.participants, options.name or found.name)
        found = replace(found, participants=rows, findings=(*found.findings, *doubts))
    if is_pattern(options.brain_mask):
        roles = [role for role in found.roles if role.kind != "brain mask"]
        masks = roles_of(folder, options.brain_mask, "brain mask", "brain mask")
        found, options = replace(found, roles=[*roles, *masks]), replace(options, brain_mask="file")
    return with_description(gather(found, options), options)


def _check_codes(found: Found, options: SourceOptions) -> None:
    """Codes for an annotation that is not there would be left out without a word."""
    names = {role.name for role in found.roles if role.kind == "label"} | set(options.labels)
    if any(is_rater(name) for name in names):
        names |= {DEFAULT_ANNOTATION}
    unknown = sorted(set(options.codes) - names)
    if unknown:
        raise UsageError(
            f"--labels gives codes for {', '.join(unknown)}, but the annotations of {found.folder.root} are "
            f"{', '.join(sorted(names)) or 'none'}. Write --labels ANNOTATION:1=NAME,2=NAME."
        )


def _without_skipped(found: Found, options: SourceOptions) -> Found:
    """`--labels NAME:skip` leaves an annotation out."""
    skipped = {name for name, codes in options.codes.items() if codes == SKIP}
    roles = without_skipped_labels(found.roles, options.codes)
    return replace(found, roles=roles, required=[name for name in found.required if name not in skipped])


def find_source(root: Path | str, options: SourceOptions | None = None, name: str = "") -> DatabaseFiles:
    """The cases of a folder as the options say how to read it.

    Args:
        name: its layout, or your own as "module:name", in place of `options.layout`. Without either, it is recognised.
    """
    options = options or SourceOptions()
    options = replace(options, layout=name or options.layout)
    folder = look_into(Path(root))
    return find_recognised(folder, recognise(folder, options), options)


def _what_is_there(folder: Folder) -> str:
    if not folder.files:
        return f"{folder.root} is empty. Is it the right folder, and is its disk there?"
    examples: Sequence[str] = (folder.volumes or folder.files)[:3]
    return (
        f"{folder.root} is in no layout that multiseg knows: its {len(folder.files)} files are such as "
        f"{', '.join(examples)}. Say where the images lie, for instance --pattern '{{case}}/{{modality}}.nii.gz' "
        "(where no name says the sequence: --pattern '{case}/{case}.nii.gz' --modality T1), or which layout it is with "
        "--as."
    )


def look_at(source: Path) -> Folder:
    """A folder with all its files; or, where a CSV or JSON file is named, its folder with that file alone.

    Raises:
        SourceError: there is no such folder.
    """
    if source.suffix.lower() in (".csv", ".json") and source.is_file():
        return Folder(source.parent, (source.name,))
    return look_into(source)


def is_listing(source: Path) -> bool:
    """Whether a file lists cases in a way that other programs have, and so is no manifest of ours."""
    if source.suffix.lower() not in (".csv", ".json") or not source.is_file():
        return False
    folder = look_at(source)
    return any(layout.recognise(folder) for layout in (gandlf.LAYOUT, monai_datalist.LAYOUT))
