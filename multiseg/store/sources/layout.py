"""What a dataset layout is to multiseg: a name, how to recognise it, and how to find its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from multiseg.store.sources.folder import Folder
from multiseg.store.sources.model import DatabaseFiles, Found, SourceOptions


@dataclass(frozen=True)
class Layout:
    """One way in which datasets lie on disk.

    Attributes:
        name: what `--as` takes.
        title: what people call it.
        recognise: the evidence in words ("3 folders such as BraTS2021_00000"), or "" where it is not this.
            Looks at names and small texts (dataset.json) only.
        find: every file's role, or whole cases. Raises DataError where the folder contradicts itself.
    """

    name: str
    title: str
    recognise: Callable[[Folder], str]
    find: Callable[[Folder, SourceOptions], Found | DatabaseFiles]
