"""Annotations: read, several raters merged, encoded, and brought onto the case's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Num, UInt8
from scipy import ndimage

from multiseg.errors import LabelError, SourceError
from multiseg.labels import IGNORE, LabelSchema
from multiseg.store.cases import LabelFile, Majority, paths_of, sha256_of
from multiseg.store.formats.reading import read_volume
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import box_of
from multiseg.store.preparation.brain import spacing_text
from multiseg.store.preparation.grids import Grid, resample_codes
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.places import grid_of, shares_grid
from multiseg.types import Codes, Mask

Counts: TypeAlias = Num[np.ndarray, " code"]
LOST_LESION_ML = 0.5
"""A lesion of this size with no voxel in the brain belongs to another scan; smaller ones may be slips of the pen."""


def read_label(name: str, file: LabelFile, schema: LabelSchema, journal: Journal) -> Volume:
    """An annotation as its file has it, in compact codes; of several raters the code that most gave a voxel.

    Raises:
        SourceError: a file cannot be read, or raters drew on different grids.
        LabelError: a value is no code of the schema.
    """
    if not isinstance(file, Majority):
        return _read(name, file, schema, journal)
    raters = [_read(name, rater, schema, journal) for rater in file.raters]
    for rater, volume in zip(file.raters, raters, strict=True):
        if volume.shape != raters[0].shape or not shares_grid(volume, raters[0]):
            raise SourceError(
                f"annotation {name!r}: the raters {file.raters[0].name} {raters[0].shape} and {rater.name} "
                f"{volume.shape} drew on different grids, so they cannot vote. Take one of them: --raters NAME.",
                code="RATERS_DISAGREE",
                file=str(volume.path),
            )
    journal.step(f"label:{name}", f"majority of {len(raters)} raters, ties to the lower code")
    codes = majority([volume.voxels for volume in raters])
    return replace(raters[0], voxels=codes, sha256=sha256_of(file), path=file.path)


def majority(raters: list[Codes]) -> Codes:
    """The code that most raters gave each voxel; where two have as many voices, the lower one."""
    winner = np.zeros(raters[0].shape, dtype=np.uint8)
    drawn = np.zeros(winner.shape, dtype=bool)
    for codes in raters:
        drawn |= codes != 0
    box = box_of(drawn)
    if box is None:
        return winner
    parts = [codes[box] for codes in raters]
    most = np.zeros(parts[0].shape, dtype=np.uint8)
    # One rater at a time: all of them in one array would be as much memory again.
    for code in sorted({int(code) for part in parts for code in np.unique(part)}):
        voices = np.zeros(most.shape, dtype=np.uint8)
        for part in parts:
            voices += part == code
        winner[box][voices > most] = code
        most = np.maximum(most, voices)
    return winner


def _read(name: str, file: LabelFile, schema: LabelSchema, journal: Journal) -> Volume:
    assert not isinstance(file, Majority)
    volume = read_volume(file)
    journal.warn_all(volume.doubts)
    try:
        codes = encoded(volume.voxels, schema)
    except LabelError as error:
        said = str(error).replace('--labels "', f'--labels "{name}:')
        message = f"annotation {name!r} ({volume.path}): {said}"
        raise LabelError(message, code="LABEL_CODES", file=str(volume.path)) from error
    marked = volume.voxels[volume.voxels != 0]
    if marked.size and not codes.any():
        listed = ", ".join(f"{value:g}" for value in np.unique(marked)[:8])
        text = (
            f"annotation {name!r} ({volume.path.name}) marks {marked.size} voxels with {listed}, and all of these mean "
            "background by its codes. Are they the right ones? Say what they mean: --labels."
        )
        journal.warn("ALL_BACKGROUND", text)
    return replace(volume, voxels=codes)


def encoded(values: Num[np.ndarray, "i j k"], schema: LabelSchema) -> UInt8[np.ndarray, "i j k"]:
    """`LabelSchema.encode`, quick for the many voxels that are 0."""
    box = box_of(values != 0)
    if box is None or values[box].size > 0.9 * values.size:
        return schema.encode(values)
    try:
        outside = schema.encode(np.zeros(1, dtype=np.uint8))[0]
    except LabelError:
        return schema.encode(values)  # for its message, with the true number of zeros
    codes = np.full(values.shape, outside, dtype=np.uint8)
    codes[box] = schema.encode(values[box])
    return codes


def label_on(grid: Grid, volume: Volume, schema: LabelSchema, name: str, journal: Journal) -> Codes:
    """Codes on the case's grid, and what they lost on the way."""
    own = grid_of(volume)
    moved = resample_codes(volume.voxels, own, grid)
    if not own.shares_lattice(grid):
        text = f"resampled from {spacing_text(own)} to {spacing_text(grid)} (argmax of linear shares)"
        journal.step(f"label:{name}", text)
    before, after = counts_of(volume.voxels), counts_of(moved)
    source_ml, ml = float(np.prod(own.spacing_mm)) / 1000, float(np.prod(grid.spacing_mm)) / 1000
    for code, structure in enumerate(schema.structures, start=1):
        had, has = before[code] * source_ml, after[code] * ml
        if had and not has:
            text = (
                f"{structure.name} ({had:.3g} ml) is lost on the store's grid. Ingest with smaller voxels: --spacing."
            )
            journal.warn("STRUCTURE_LOST", text)
        elif had > 0.5 and abs(has / had - 1) > 0.2:
            text = f"{structure.name}: {had:.3g} ml became {has:.3g} ml on the store's grid. Compare smaller voxels."
            journal.warn("STRUCTURE_CHANGED", text)
    if not before[1 : len(schema.structures) + 1].any():
        text = f"annotation {name!r} is empty: looked for, nothing found. If nobody looked, leave the file out."
        journal.note("EMPTY_LABEL", text)
    return moved


def counts_of(codes: Codes) -> Counts:
    """How many voxels each of the 256 codes has; the zeros outside the box of the others are not counted."""
    box = box_of(codes != 0)
    return np.bincount(() if box is None else codes[box].ravel(), minlength=256)


def check_labels(
    labels: Mapping[str, Codes],
    files: Mapping[str, LabelFile],
    schemas: Mapping[str, LabelSchema],
    brain: Mask,
    spacing_mm: tuple[float, float, float],
    journal: Journal,
) -> None:
    """Labels that lie outside the brain or fill most of it; voxels to ignore do not count.

    Raises:
        SourceError: no voxel of an annotation, or of a lesion of `LOST_LESION_ML`, is in the brain or beside it.
    """
    for name, codes in labels.items():
        _check_place(name, codes, files[name], schemas[name], brain, spacing_mm, journal)
        counts = counts_of(codes)
        lesions = sum(
            int(counts[code]) for code, one in enumerate(schemas[name].structures, start=1) if one.kind == "lesion"
        )
        share = lesions / max(1, int(np.count_nonzero(brain)))
        if share > 0.5:
            text = (
                f"the lesions of annotation {name!r} fill {share:.0%} of the brain. Is it a mask of the brain, or are "
                "its codes swapped? Say what they mean: --labels."
            )
            journal.warn("LARGE_LABEL", text)


def _check_place(
    name: str,
    codes: Codes,
    file: LabelFile,
    schema: LabelSchema,
    brain: Mask,
    spacing_mm: tuple[float, float, float],
    journal: Journal,
) -> None:
    everywhere, outside = counts_of(codes), counts_of(np.where(brain, 0, codes))
    total, lost = int(everywhere[1:IGNORE].sum()), int(outside[1:IGNORE].sum())
    if not lost:
        return
    ml = float(np.prod(spacing_mm)) / 1000
    ask = "Is it this patient's label, on this patient's scan, and is the brain's mask all of the brain?"
    far = _far_codes(codes, brain, everywhere, outside)
    gone = [
        f"{one.name} ({everywhere[code] * ml:.3g} ml)"
        for code, one in enumerate(schema.structures, start=1)
        if code in far and one.kind == "lesion" and everywhere[code] * ml >= LOST_LESION_ML
    ]
    is_all = len(far) == np.count_nonzero(everywhere[1:IGNORE])
    if is_all or gone:
        what = f"all of annotation {name!r}" if is_all else f"{', '.join(gone)} of annotation {name!r}"
        message = f"{what} ({file.name}) lies outside the brain, none of it within. {ask}"
        raise SourceError(message, code="LABEL_OUTSIDE_BRAIN", file=str(paths_of(file)[0]))
    if lost > 0.01 * total:
        text = f"{lost / total:.0%} of annotation {name!r} lies outside the brain. Look at the overlay. {ask}"
        journal.warn("LABEL_OUTSIDE_BRAIN", text)


def _far_codes(codes: Codes, brain: Mask, everywhere: Counts, outside: Counts) -> set[int]:
    """The codes that have no voxel in the brain, nor one beside it: a voxel of rounding is none's fault."""
    alone = [code for code in range(1, IGNORE) if everywhere[code] and everywhere[code] == outside[code]]
    if not alone:
        return set()
    near = np.unique(codes[ndimage.binary_dilation(brain)])
    return set(alone) - {int(code) for code in near}
