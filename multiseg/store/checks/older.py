"""Whether a database of format 2 is whole, which told no lost file from one that holds only fill values."""

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
"""Every committed case has a value in these, so that their first chunk along the other axes is always there."""
MAY_BE_EMPTY = ("session", "site", "split_given")
LOST = "Copy the store again from where it came, before it is converted."


def verify_older(layout: Layout, accepted: Collection[str], faults: Faults) -> None:
    """Note what looks lost in a database of format 2, by what its other coordinates and its voxels say.

    Args:
        accepted: arrays, such as "ms/age", whose chunks that are not there hold only fill values, as a person says.
    """
    for name, blocks in _absent(layout).items():
        own = f"{layout.name}/{name}" in accepted
        key, is_whole = blocks[0].key, len(blocks) == _num_in_use(layout, name)
        if name in NEVER_EMPTY and not any(blocks[0].index[1:]):
            faults.error("MISSING_FILE", key, f"the file is not there, although every case has a {name}. {LOST}")
        elif own:
            continue
        elif name in MAY_BE_EMPTY and is_whole:
            said = f"no case has a {name}, or else {key} was lost: format 2 does not tell. It is taken as it is"
            faults.note("TAKEN_AS_EMPTY", key, f"{said}.")
        elif name in MAY_BE_EMPTY or name not in schema.COORDINATES:
            said = f"the file is not there. Either no case in it has a value of {name}, or it was lost. {LOST}"
            faults.error(
                "MISSING_FILE", key, f"{said} If no case has one, say so: --accept {layout.name}/{name}.",
            )  # fmt: skip
    _check_status(layout, accepted, faults)
    _check_values(layout, faults)


def _check_status(layout: Layout, accepted: Collection[str], faults: Faults) -> None:
    digests = layout.columns.get("source_sha256", ())
    is_absent = any(name == "status" for name, _ in layout.absent)
    if is_absent and f"{layout.name}/status" not in accepted and any(str(digest) for digest in digests):
        said = "the states of the rows are not there, although rows are written in full"
        more = f"If no case was ever committed, say so: --accept {layout.name}/status."
        faults.error("MISSING_FILE", f"{layout.name}/status/c/0", f"{said}. {LOST} {more}")


def _absent(layout: Layout) -> dict[str, list[Block]]:
    """The chunks that are not there and hold a row in use, by array."""
    found: dict[str, list[Block]] = {}
    for name, block in layout.absent:
        by_case = layout.arrays[name].metadata.dimension_names[0] == "case"
        if not by_case or layout.expected.in_use[block.region[0]].any():
            found.setdefault(name, []).append(block)
    return found


def _num_in_use(layout: Layout, name: str) -> int:
    """How many chunks of an array along the cases hold a row in use."""
    rows = np.flatnonzero(layout.expected.in_use)
    return len({int(row) // layout.arrays[name].chunks[0] for row in rows})


def _check_values(layout: Layout, faults: Faults) -> None:
    """What a part of a chunk would have, had it been lost with the rest."""
    for row in layout.rows(schema.COMMITTED):
        for name, said in _empty(layout, row):
            case = layout.case(row)
            faults.error("MISSING_FILE", f"{layout.name}/{name}", f"the case {case!r} {said}. {LOST}")


def _empty(layout: Layout, row: int) -> Iterator[tuple[str, str]]:
    held = {name: values[row] for name, values in layout.columns.items() if row < len(values)}
    if "native_header" in held and not np.any(held["native_header"]):
        yield "native_header", "has no header of its reference image"
    if {"annotated", "sources"} <= held.keys():
        for annotation, there in zip(layout.annotations, held["annotated"], strict=False):
            if not there and f'"label:{annotation}"' in str(held["sources"]):
                yield "annotated", f"has a source of the annotation {annotation!r}, but not the annotation"
    if {"available", "content"} <= held.keys():
        named = zip(layout.modalities, held["available"], held["content"], strict=False)
        for modality, there, digest in named:
            if there and not str(digest):
                yield "content", f"has no digest of its {modality}"
