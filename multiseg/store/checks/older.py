"""Checking whether a database of format 2 is complete. That format cannot tell a lost chunk from an empty one."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from multiseg.store import schema
from multiseg.store.checks.chunks import Block
from multiseg.store.checks.fault_collector import Faults
from multiseg.store.checks.layout import Layout

OF_FORMAT_2 = tuple(name for name in schema.COORDINATES if name not in schema.BOOKKEEPING)
NEVER_EMPTY = (
    "case", "subject", "split", "extent", "affine", "native_shape", "native_affine", "native_header", "source_sha256",
    "sources", "modality", "annotation", "available", "intensity_mean", "intensity_std", "content",
)  # fmt: skip
"""Every committed case has a value in these, so that their first chunk along the other axes always exists."""
MAY_BE_EMPTY = ("session", "site", "split_given")
LOST = "Copy the store again from its source before you convert it."


def verify_older(layout: Layout, accepted: Collection[str], faults: Faults) -> None:
    """Report what seems lost in a database of format 2, judging by its other coordinates and its voxels.

    Args:
        accepted: arrays, such as "ms/age", whose missing chunks the user knows to be empty.
    """
    for name, blocks in _missing_chunks(layout).items():
        is_accepted = f"{layout.name}/{name}" in accepted
        key, is_whole = blocks[0].key, len(blocks) == _num_in_use(layout, name)
        if name in NEVER_EMPTY and not any(blocks[0].index[1:]):
            faults.error("MISSING_FILE", key, f"the file is missing, although every case has a {name}. {LOST}")
        elif is_accepted:
            continue
        elif name in MAY_BE_EMPTY and is_whole:
            message = f"no case has a {name}, or {key} was lost: format 2 does not tell. It is treated as empty."
            faults.note("TAKEN_AS_EMPTY", key, message)
        elif name in MAY_BE_EMPTY or name not in schema.COORDINATES:
            message = f"the file is missing. Either no case in it has a value of {name}, or it was lost. {LOST}"
            faults.error("MISSING_FILE", key, f"{message} If no case has one, use: --accept {layout.name}/{name}.")
    _check_values(layout, faults)


def _missing_chunks(layout: Layout) -> dict[str, list[Block]]:
    """The missing chunks with a row in use, by array."""
    missing: dict[str, list[Block]] = {}
    for name, block in layout.absent:
        by_case = layout.arrays[name].metadata.dimension_names[0] == "case"
        if not by_case or layout.expected.in_use[block.region[0]].any():
            missing.setdefault(name, []).append(block)
    return missing


def _num_in_use(layout: Layout, name: str) -> int:
    """The number of chunks of an array, along the axis case, with a row in use."""
    rows = np.flatnonzero(layout.expected.in_use)
    return len({int(row) // layout.arrays[name].chunks[0] for row in rows})


def _check_values(layout: Layout, faults: Faults) -> None:
    """Report committed cases that lack a value which every case has, as after the loss of a chunk."""
    for row in layout.rows(schema.COMMITTED):
        for name, problem in _missing_values(layout, row):
            case = layout.case(row)
            faults.error("MISSING_FILE", f"{layout.name}/{name}", f"the case {case!r} {problem}. {LOST}")


def _missing_values(layout: Layout, row: int) -> Iterator[tuple[str, str]]:
    metadata = {name: values[row] for name, values in layout.columns.items() if row < len(values)}
    if "native_header" in metadata and not np.any(metadata["native_header"]):
        yield "native_header", "has no header of its reference image"
    if {"annotated", "sources"} <= metadata.keys():
        for annotation, has_it in zip(layout.annotations, metadata["annotated"], strict=False):
            if not has_it and f'"label:{annotation}"' in str(metadata["sources"]):
                yield "annotated", f"has a source of the annotation {annotation!r}, but not the annotation"
    if {"available", "content"} <= metadata.keys():
        named = zip(layout.modalities, metadata["available"], metadata["content"], strict=False)
        for modality, has_it, digest in named:
            if has_it and not str(digest):
                yield "content", f"has no digest of its {modality}"
