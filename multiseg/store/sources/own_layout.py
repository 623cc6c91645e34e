"""Custom layouts: a function from a folder to whole cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from multiseg.errors import SourceError, UsageError
from multiseg.own import blamed, check_takes, imported
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import DatabaseFiles, Layout, SourceOptions

OwnSource: TypeAlias = Callable[[Path, SourceOptions], DatabaseFiles]
SIGNATURE = "(root, options)"


def own_layout(name: str) -> Layout:
    """The layout that `module:name` stands for.

    Raises:
        UsageError: it cannot be imported or called as (root, options).
    """
    source: OwnSource = imported(name, "source")
    check_takes(source, 2, "source", SIGNATURE, name)
    return Layout(
        name,
        "your own layout",
        lambda folder: "by your choice",
        lambda folder, options: _found(source, name, folder, options),
    )


def _found(source: OwnSource, name: str, folder: Folder, options: SourceOptions) -> DatabaseFiles:
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
        raise SourceError(
            f"the source {name} has two cases {duplicates[0]!r}.", code="DUPLICATE_CASE", file=str(folder.root)
        )
    if not found.cases and not found.findings:
        raise SourceError(
            f"the source {name} found no case in {folder.root}.", code="NOTHING_FOUND", file=str(folder.root)
        )
    return found
