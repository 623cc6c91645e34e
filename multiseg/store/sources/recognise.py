"""What a folder is: the layouts we know, and telling them apart by looking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import SourceError, UsageError
from multiseg.store.sources import brats
from multiseg.store.sources.folder import Folder, look_into
from multiseg.store.sources.gathering import SourceOptions, gather
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import DatabaseFiles

LAYOUTS: tuple[Layout, ...] = (
    brats.FROM,
    brats.UNTIL,
)
"""The more special a layout, the earlier it stands: a folder is what the first one recognises."""


@dataclass(frozen=True)
class Recognised:
    """What a folder was taken for, why, and what else it might be."""

    layout: Layout
    evidence: str
    others: tuple[str, ...] = ()


def recognise(folder: Folder, name: str = "") -> Recognised:
    """The layout of a folder; `name` decides where the user knows better.

    Raises:
        UsageError: there is no layout of that name.
        SourceError: no layout looks like this folder.
    """
    known = {layout.name: layout for layout in LAYOUTS}
    if name:
        if name not in known:
            raise UsageError(f"there is no layout {name!r}; layouts are {', '.join(known)}.")
        return Recognised(known[name], known[name].recognise(folder) or "as asked")
    seen = [(layout, evidence) for layout in LAYOUTS if (evidence := layout.recognise(folder))]
    if not seen:
        raise SourceError(_what_is_there(folder), code="UNKNOWN_LAYOUT", file=str(folder.root))
    (layout, evidence), *others = seen
    return Recognised(layout, evidence, tuple(other.name for other, _ in others))


def find_recognised(folder: Folder, recognised: Recognised, options: SourceOptions) -> DatabaseFiles:
    """The cases of a folder that was recognised.

    Raises:
        DataError: the folder contradicts itself, or holds nothing of what its layout promises.
    """
    found = recognised.layout.find(folder, options)
    if not found.roles:
        raise SourceError(
            f"{folder.root} holds no scan where {recognised.layout.title} has them. {_what_is_there(folder)}",
            code="NOTHING_FOUND",
            file=str(folder.root),
        )
    return gather(found, options)


def find_source(root: Path, options: SourceOptions | None = None, name: str = "") -> DatabaseFiles:
    """The cases of a folder in whatever layout it is, or in the one called `name`."""
    folder = look_into(root)
    return find_recognised(folder, recognise(folder, name), options or SourceOptions())


def _what_is_there(folder: Folder) -> str:
    if not folder.files:
        return f"{folder.root} is empty. Is it the right folder, and is its disk there?"
    examples: Sequence[str] = (folder.volumes or folder.files)[:3]
    return (
        f"{folder.root} is in no layout that multiseg knows: its {len(folder.files)} files are such as "
        f"{', '.join(examples)}. Say where the images lie, for instance --pattern '{{case}}/{{modality}}.nii.gz', or "
        "which layout it is with --as."
    )
