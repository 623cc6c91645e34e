"""Files that name the files of cases: to a layout, a folder with that one file in it."""

from __future__ import annotations

from pathlib import Path

from multiseg.store.sources import gandlf, monai_datalist
from multiseg.store.sources.folder import Folder, look_into


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
