"""Describe a folder by file-name patterns in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from multiseg.store.sources.pattern import compile_pattern
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import DatabaseFiles, SourceOptions


@dataclass(frozen=True)
class PatternSource:
    """One database described by file-name patterns relative to `root`; other fields are those of `SourceOptions`."""

    name: str
    root: Path | str
    pattern: str
    pathology: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    brain_mask: str = ""
    modalities: Mapping[str, str] = field(default_factory=dict)
    modality: str = ""
    participants: str = ""
    raters: str = "all"
    allow_unlabelled: bool = False
    licence: str = ""
    citation: str = ""
    source: str = ""


def find_database(source: PatternSource) -> DatabaseFiles:
    """Find the files of every case by their names.

    Raises:
        SourceError: the folder does not exist, or no file matches the pattern.
        UsageError: a pattern or a label's codes are invalid.
    """
    compile_pattern(source.pattern)  # refuses "", which would mean to recognise the layout
    options = {field.name: getattr(source, field.name) for field in fields(source) if field.name != "root"}
    return find_source(source.root, SourceOptions(**options))
