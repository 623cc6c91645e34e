"""Annotations: read, encode, merge several raters, and resample to the case's grid."""

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
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.boxes import box_of
from multiseg.store.preparation.brain import spacing_text
from multiseg.store.preparation.grids import Grid, resample_codes
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.places import grid_of, shares_grid
from multiseg.types import Codes, Mask

Counts: TypeAlias = Num[np.ndarray, " code"]
LOST_LESION_ML = 0.5
"""A lesion of this size outside the brain belongs to another scan. Smaller ones may be slips of the pen."""


def read_label(name: str, file: LabelFile, schema: LabelSchema, journal: Journal) -> Volume:
    """Read an annotation as compact codes; several raters are merged by majority.

    Raises:
        SourceError: a file cannot be read, or the raters drew on different grids.
        LabelError: a value is not a code of the schema.
    """
    if not isinstance(file, Majority):
        return _read(name, file, schema, journal)
    raters = [_read(name, rater, schema, journal) for rater in file.raters]
    for rater, volume in zip(file.raters, raters, strict=True):
        if volume.shape != raters[0].shape or not shares_grid(volume, raters[0]):
            message = (
                f"annotation {name!r}: the raters {file.raters[0].name} {raters[0].shape} and {rater.name} "
                f"{volume.shape} drew on different grids, so they cannot be merged. Choose one: --raters NAME."
            )
            raise SourceError(message, code="RATERS_DISAGREE", file=str(volume.path))
    journal.step(f"label:{name}", f"majority of {len(raters)} raters, ties to the lower code")
    codes = majority([volume.voxels for volume in raters])
    return replace(raters[0], voxels=codes, sha256=sha256_of(file), path=file.path)


def majority(raters: list[Codes]) -> Codes:
    """The code that most raters gave each voxel; of codes with equal votes the lowest."""
    winner = np.zeros(raters[0].shape, dtype=np.uint8)
    drawn = np.zeros(winner.shape, dtype=bool)
    for codes in raters:
        drawn |= codes != 0
    box = box_of(drawn)
    if box is None:
        return winner
    parts = [codes[box] for codes in raters]
    most_votes = np.zeros(parts[0].shape, dtype=np.uint8)
    # One rater at a time: an array of all of them would double the memory.
    for code in sorted({int(code) for part in parts for code in np.unique(part)}):
        votes = np.zeros(most_votes.shape, dtype=np.uint8)
        for part in parts:
            votes += part == code
        winner[box][votes > most_votes] = code
        most_votes = np.maximum(most_votes, votes)
    return winner


def _read(name: str, file: LabelFile, schema: LabelSchema, journal: Journal) -> Volume:
    assert not isinstance(file, Majority)
    volume = read_volume(file)
    journal.warn_all(volume.doubts)
    try:
        codes = encode_labels(volume.voxels, schema)
    except LabelError as error:
        text = str(error).replace('--labels "', f'--labels "{name}:')
        message = f"annotation {name!r} ({volume.path}): {text}"
        raise LabelError(message, code="LABEL_CODES", file=str(volume.path)) from error
    marked = volume.voxels[volume.voxels != 0]
    if marked.size and not codes.any():
        listed = ", ".join(f"{value:g}" for value in np.unique(marked)[:8])
        text = (
            f"annotation {name!r} ({volume.path.name}) marks {marked.size} voxels with {listed}, but all of these "
            "codes mean background. Give their meaning: --labels."
        )
        journal.warn("ALL_BACKGROUND", text)
    return replace(volume, voxels=codes)


def encode_labels(values: Num[np.ndarray, "i j k"], schema: LabelSchema) -> UInt8[np.ndarray, "i j k"]:
    """`LabelSchema.encode`, faster for the many voxels that are 0."""
    box = box_of(values != 0)
    if box is None or values[box].size > 0.9 * values.size:
        return schema.encode(values)
    try:
        # Encode one zero, and the box of the other values.
        outside = schema.encode(np.zeros(1, dtype=np.uint8))[0]
    except LabelError:
        return schema.encode(values)  # for its message, with the true number of zeros
    codes = np.full(values.shape, outside, dtype=np.uint8)
    codes[box] = schema.encode(values[box])
    return codes


def resample_label(grid: Grid, volume: Volume, schema: LabelSchema, name: str, journal: Journal) -> Codes:
    """Resample codes to the case's grid, and warn of structures that are lost or change their volume."""
    source = grid_of(volume)
    resampled = resample_codes(volume.voxels, source, grid)
    if not source.shares_lattice(grid):
        text = f"resampled from {spacing_text(source)} to {spacing_text(grid)} (argmax of linear shares)"
        journal.step(f"label:{name}", text)
    before, after = counts_of(volume.voxels), counts_of(resampled)
    source_ml, ml = float(np.prod(source.spacing_mm)) / 1000, float(np.prod(grid.spacing_mm)) / 1000
    for code, structure in enumerate(schema.structures, start=1):
        ml_before, ml_after = before[code] * source_ml, after[code] * ml
        if ml_before and not ml_after:
            text = f"{structure.name} ({ml_before:.3g} ml) is lost on the store's grid. Use smaller voxels: --spacing."
            journal.warn("STRUCTURE_LOST", text)
        elif ml_before > 0.5 and abs(ml_after / ml_before - 1) > 0.2:
            text = (
                f"{structure.name}: {ml_before:.3g} ml became {ml_after:.3g} ml on the store's grid. "
                "Try smaller voxels: --spacing."
            )
            journal.warn("STRUCTURE_CHANGED", text)
    if not before[1 : len(schema.structures) + 1].any():
        text = f"annotation {name!r} is empty, which means that no lesion was found."
        journal.note("EMPTY_LABEL", f"{text} If nobody looked, leave the file out.")
    return resampled


def counts_of(codes: Codes) -> Counts:
    """The number of voxels of each of the 256 codes, without the zeros outside the box of the others."""
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
    """Check that labels are within the brain and do not fill most of it, apart from ignored voxels.

    Raises:
        SourceError: no voxel of an annotation, or of a lesion of `LOST_LESION_ML`, is in or next to the brain.
    """
    for name, codes in labels.items():
        _check_position(name, codes, files[name], schemas[name], brain, spacing_mm, journal)
        counts = counts_of(codes)
        codes_of_lesions = [n for n, part in enumerate(schemas[name].structures, start=1) if part.kind == "lesion"]
        share = int(counts[codes_of_lesions].sum()) / max(1, int(np.count_nonzero(brain)))
        if share > 0.5:
            text = (
                f"the lesions of annotation {name!r} fill {share:.0%} of the brain. Is it a brain mask, or are "
                "its codes swapped? Give their meaning: --labels."
            )
            journal.warn("LARGE_LABEL", text)


def _check_position(
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
    question = "Is it this patient's label, on this patient's scan, and does the brain mask cover the whole brain?"
    far = _far_codes(codes, brain, everywhere, outside)
    lost_lesions = [
        f"{structure.name} ({everywhere[code] * ml:.3g} ml)"
        for code, structure in enumerate(schema.structures, start=1)
        if code in far and structure.kind == "lesion" and everywhere[code] * ml >= LOST_LESION_ML
    ]
    is_all = len(far) == np.count_nonzero(everywhere[1:IGNORE])
    if is_all or lost_lesions:
        what = f"all of annotation {name!r}" if is_all else f"{', '.join(lost_lesions)} of annotation {name!r}"
        message = f"{what} ({file.name}) is outside the brain. {question}"
        raise SourceError(message, code="LABEL_OUTSIDE_BRAIN", file=str(paths_of(file)[0]))
    if lost > 0.01 * total:
        text = f"{lost / total:.0%} of annotation {name!r} is outside the brain. Look at the overlay. {question}"
        journal.warn("LABEL_OUTSIDE_BRAIN", text)


def _far_codes(codes: Codes, brain: Mask, everywhere: Counts, outside: Counts) -> set[int]:
    """The codes without a voxel in the brain or next to it, which allows for rounding."""
    candidates = [code for code in range(1, IGNORE) if everywhere[code] and everywhere[code] == outside[code]]
    if not candidates:
        return set()
    # Dilation is slow, so it is only done if there are candidates.
    near = np.unique(codes[ndimage.binary_dilation(brain)])
    return set(candidates) - {int(code) for code in near}
