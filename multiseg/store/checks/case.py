"""Checking a stored case: its metadata, its provenance and all of its voxels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import numpy as np
from jaxtyping import Shaped

from multiseg.labels import IGNORE
from multiseg.store import schema
from multiseg.store.catalogue import SPLITS
from multiseg.store.checks.chunks import Block, decoded_blocks
from multiseg.store.checks.fault_collector import REDO, Faults, advice
from multiseg.store.checks.layout import Layout
from multiseg.store.checks.record_checks import read_record, verify_record
from multiseg.store.damage import UNREADABLE, one_line
from multiseg.store.formats.volumes import axis_codes
from multiseg.store.hierarchy import is_plain_name
from multiseg.store.preparation.boxes import box_at
from multiseg.store.preparation.grids import SAME_SPACING, Grid
from multiseg.store.preparation.plausible import Region, find_implausible
from multiseg.store.rows import digest_of_sources
from multiseg.types import Affine, Index3

ORTHONORMAL = 1e-3
"""The largest cosine between two axes of a grid that still counts as a right angle."""
OFF_CENTRE = 0.005
"""The largest |sum of voxels| / sum of |voxels| of a normalised image; float16 rounding reaches a tenth of it."""


def verify_case(layout: Layout, row: int, faults: Faults) -> None:
    """Check one committed case and collect its faults."""
    metadata = {name: values[row] for name, values in layout.columns.items() if _has_rows(name) and row < len(values)}
    _check_names(layout, metadata, faults)
    _check_grid(layout, metadata, faults)
    _check_native(layout, metadata, faults)
    _check_sources(layout, metadata, faults)
    _check_intensities(layout, metadata, faults)
    extent = _extent(layout, metadata, faults)
    if extent is not None:
        if "image" in layout.arrays and "available" in metadata:
            _check_image(layout, row, extent, metadata, faults)
        if "label" in layout.arrays and "annotated" in metadata:
            _check_label(layout, row, extent, metadata, faults)
    verify_record(layout, row, metadata, faults)


def verify_row(layout: Layout, row: int, faults: Faults) -> None:
    """Decode all files of a row without a committed case. A replaced case still has all of its files."""
    row_faults = Faults(faults.database, faults.case)
    for name in ("image", "label", "foreground"):
        if name in layout.arrays and row < layout.arrays[name].shape[0]:
            for block in decoded_blocks(layout.arrays[name], row_faults, row):
                _check_named(layout, row, name, block, row_faults)
    if layout.status[row] == schema.SUPERSEDED:
        read_record(layout, row, row_faults, is_committed=False)
    for finding in row_faults.found:
        faults.warning(finding.code, finding.file, f"in a row without a committed case: {finding.message}")


def _has_rows(name: str) -> bool:
    return name not in schema.COORDINATES or schema.COORDINATES[name].axes[0] == "case"


def _check_names(layout: Layout, metadata: dict[str, Any], faults: Faults) -> None:
    if "case" in metadata and not is_plain_name(str(metadata["case"])):
        faults.damage("BAD_NAME", f"{layout.name}/case", f"{str(metadata['case'])!r} is not a valid name for a case")
    if "subject" in metadata and not str(metadata["subject"]):
        faults.damage("NO_SUBJECT", f"{layout.name}/subject", "the case has no subject")
    if "split" in metadata and str(metadata["split"]) not in SPLITS:
        problem = f"the split {str(metadata['split'])!r} is not one of {', '.join(SPLITS)}"
        faults.damage("BAD_SPLIT", f"{layout.name}/split", problem, "Ingest the case again with --split.")


def _extent(layout: Layout, metadata: dict[str, Any], faults: Faults) -> Index3 | None:
    if "extent" not in metadata:
        return None
    i, j, k = (int(n) for n in metadata["extent"])
    for name in ("image", "label"):
        room = layout.arrays[name].shape[2:] if name in layout.arrays else (i, j, k)
        if not all(0 < n <= most for n, most in zip((i, j, k), room, strict=True)):
            problem = f"its extent {i}x{j}x{k} does not fit into the {'x'.join(map(str, room))} voxels of {name!r}"
            faults.damage("BAD_EXTENT", f"{layout.name}/extent", problem)
            return None
    return i, j, k


def _check_grid(layout: Layout, metadata: dict[str, Any], faults: Faults) -> None:
    if "affine" not in metadata:
        return
    affine = np.asarray(metadata["affine"])
    wrong = _not_a_grid(affine)
    if not wrong:
        size = Grid(affine, (1, 1, 1)).spacing_mm
        columns = affine[:3, :3] / size
        cosine = float(np.abs(columns.T @ columns - np.eye(3)).max())
        if cosine > ORTHONORMAL:
            wrong = f"its axes are not at right angles (cosine {cosine:.3g})"
        elif axis_codes(affine) != "RAS":
            wrong = f"its axes point to {axis_codes(affine)} instead of RAS"
        elif layout.recipe is not None and not np.allclose(size, layout.recipe.spacing_mm, rtol=SAME_SPACING, atol=0):
            wrong = f"its voxels are {_by_x(size)} mm, those of the database {_by_x(layout.recipe.spacing_mm)} mm"
    if wrong:
        faults.damage("BAD_AFFINE", f"{layout.name}/affine", f"the affine {affine.tolist()}: {wrong}")


def _not_a_grid(affine: Affine) -> str:
    if not np.isfinite(affine).all():
        return "it is not finite"
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        return "its last row is not 0 0 0 1"
    return "it maps to a plane" if abs(np.linalg.det(affine[:3, :3])) < 1e-6 else ""


def _by_x(numbers: Sequence[float]) -> str:
    return "x".join(f"{number:.6g}" for number in numbers)


def _check_native(layout: Layout, metadata: dict[str, Any], faults: Faults) -> None:
    if "native_affine" in metadata and (wrong := _not_a_grid(np.asarray(metadata["native_affine"]))):
        problem = f"the file's own affine {metadata['native_affine'].tolist()}: {wrong}. The case cannot be exported"
        faults.damage("BAD_NATIVE", f"{layout.name}/native_affine", problem)
    if "native_shape" in metadata and min(metadata["native_shape"]) < 1:
        problem = f"the file's own shape is {metadata['native_shape'].tolist()}. The case cannot be exported"
        faults.damage("BAD_NATIVE", f"{layout.name}/native_shape", problem)
    if "native_header" in metadata:
        head = bytes(metadata["native_header"])
        if {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}.isdisjoint({0, 348, 540}):
            faults.damage("BAD_NATIVE", f"{layout.name}/native_header", "the file's own header is not a NIfTI header")


def _check_sources(layout: Layout, metadata: dict[str, Any], faults: Faults) -> None:
    """Check that every sequence and annotation has a source, and that their digest is the one that ingest compares."""
    if not {"sources", "source_sha256", "available", "annotated"} <= set(metadata):
        return
    file = f"{layout.name}/sources"
    try:
        sources = json.loads(str(metadata["sources"]))
        digests = {str(source["role"]): str(source["sha256"]) for source in sources}
        digest = digest_of_sources(sources)
    except UNREADABLE as error:
        faults.damage("BAD_SOURCES", file, f"the list of source files cannot be read: {one_line(error)}")
        return
    names = set(compress(layout.modalities, metadata["available"]))
    names |= {f"label:{name}" for name in compress(layout.annotations, metadata["annotated"])}
    if names != set(digests) - {"brain_mask"}:
        problem = f"there are sources for {', '.join(sorted(digests))}, but the case has {', '.join(sorted(names))}"
        faults.damage("BAD_SOURCES", file, problem)
    elif not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values()):
        faults.damage("BAD_SOURCES", file, "the sha256 of a source is invalid")
    elif digest != str(metadata["source_sha256"]):
        problem = f"the digest of its sources is {str(metadata['source_sha256'])[:16]}..., but they give another"
        faults.damage("WRONG_DIGEST", f"{layout.name}/source_sha256", problem)


def _check_intensities(layout: Layout, metadata: dict[str, Any], faults: Faults) -> None:
    """Check that exactly the sequences of the case have a mean and a standard deviation."""
    if not {"available", "intensity_mean", "intensity_std"} <= set(metadata):
        return
    for name, has_it, mean, std in zip(
        layout.modalities, metadata["available"], metadata["intensity_mean"], metadata["intensity_std"], strict=False
    ):
        is_good = math.isfinite(mean) and math.isfinite(std) and std > 0
        if is_good != bool(has_it):
            has = "has" if has_it else "has no"
            problem = f"the case {has} {name}, but its mean is {mean:g} and its deviation {std:g}"
            faults.damage("BAD_INTENSITY", f"{layout.name}/intensity_mean", problem)


def _check_image(layout: Layout, row: int, extent: Index3, metadata: dict[str, Any], faults: Faults) -> None:
    available = metadata["available"]
    volume = _volume(layout, "image", row, extent, faults)
    if volume is None:
        return
    file = f"{layout.name}/image/c/{row}"
    is_scored = layout.recipe is not None and layout.recipe.normalise in ("zscore", "histogram")
    for name, has_it, image in zip(layout.modalities, available, volume, strict=False):
        num_bad = int(np.count_nonzero(~np.isfinite(image)))
        if num_bad:
            faults.damage("NOT_FINITE", file, f"{name} has {num_bad} voxels that are NaN or infinite", REDO)
        elif not has_it and image.any():
            num_filled = np.count_nonzero(image)
            problem = f"the metadata say that the case has no {name}, but {num_filled} of its voxels are not 0"
            faults.damage("NOT_AVAILABLE", file, problem)
        elif has_it and not image.any():
            faults.damage("EMPTY_IMAGE", file, f"{name} is 0 everywhere", REDO)
        elif has_it and is_scored and (off := _imbalance(image)) > OFF_CENTRE:
            problem = f"the normalised voxels of {name} are not centred at 0 ({off:.1%} of their size is left)"
            faults.damage("NOT_NORMALISED", file, f"{problem}: part of the image was lost or changed", REDO)
    if not faults.found:
        _doubt_brains(layout, volume, metadata, faults)


def _doubt_brains(
    layout: Layout, volume: Shaped[np.ndarray, "modality i j k"], metadata: dict[str, Any], faults: Faults
) -> None:
    """Warn if the non-zero voxels cannot be a brain within the field of view of the reference scan."""
    if layout.recipe is None or not {"affine", "native_affine", "native_shape"} <= set(metadata):
        return
    x, y, z = (int(n) for n in metadata["native_shape"])
    view = Grid(np.asarray(metadata["native_affine"]), (x, y, z))
    # The stored box was cropped from a grid that may have been larger.
    i, j, k = (slice(-1, n + 1) for n in volume.shape[1:])
    around = Grid(np.asarray(metadata["affine"]), volume.shape[1:]).part((i, j, k))
    box = box_at((1, 1, 1), volume.shape[1:])
    images = compress(zip(layout.modalities, volume, strict=False), metadata["available"])
    regions = {name: Region(box, image != 0, view) for name, image in images}
    for code, text in find_implausible(regions, around, layout.recipe.brain_mask):
        faults.warning(code, f"{layout.name}/image", text)


def _imbalance(image: Shaped[np.ndarray, "i j k"]) -> float:
    sums = [(float(part.sum(dtype=np.float64)), float(np.abs(part).sum(dtype=np.float64))) for part in image]
    return abs(sum(total for total, _ in sums)) / sum(size for _, size in sums)


def _volume(
    layout: Layout, name: str, row: int, extent: Index3, faults: Faults
) -> Shaped[np.ndarray, "channel i j k"] | None:
    """All channels of a case; None if any part is damaged or missing.

    Voxels outside the case's extent, where readers expect zeros, are reported.
    """
    array = layout.arrays[name]
    volume = np.zeros((array.shape[1], *extent), dtype=array.dtype)
    num_outside, num_before = 0, len(faults.found)
    missing: list[tuple[str, tuple[slice, ...]]] = []
    for block in decoded_blocks(array, faults, row):
        inside = tuple(slice(part.start, min(part.stop, n)) for part, n in zip(block.region[2:], extent, strict=True))
        is_wanted = all(part.stop > part.start for part in inside)
        _check_named(layout, row, name, block, faults)
        if block.is_missing and is_wanted and row not in layout.expected.shards:
            missing.append((block.key, inside))
        if block.values is None:
            continue
        values = block.values[0]
        num_outside += int(np.count_nonzero(values))
        if is_wanted:
            inside_values = values[:, *(slice(0, part.stop - part.start) for part in inside)]
            volume[block.region[1], *inside] = inside_values
            num_outside -= int(np.count_nonzero(inside_values))
    if num_outside:
        problem = f"{name} has {num_outside} voxels outside the extent {'x'.join(map(str, extent))}"
        faults.damage("OUTSIDE_EXTENT", f"{layout.name}/{name}/c/{row}", problem)
    for key, region in missing if name == "image" else ():
        if _has_neighbours(volume, region):
            faults.damage("MISSING_FILE", key, "the file is missing, but the brain continues into its voxels", REDO)
    is_damaged = any(finding.code in ("DAMAGED_CHUNK", "MISSING_FILE") for finding in faults.found[num_before:])
    return None if is_damaged else volume


def _has_neighbours(volume: Shaped[np.ndarray, "channel i j k"], region: tuple[slice, ...]) -> bool:
    """Whether there are non-zero voxels next to the faces of an empty box."""
    for axis, part in enumerate(region):
        for position in (part.start - 1, part.stop):
            neighbours = [*region[:axis], slice(position, position + 1), *region[axis + 1 :]]
            if 0 <= position < volume.shape[axis + 1] and volume[:, *neighbours].any():
                return True
    return False


def _check_named(layout: Layout, row: int, name: str, block: Block, faults: Faults) -> None:
    """Check that a file of a case exists if, and only if, the case names it."""
    if row not in layout.expected.shards:
        return
    is_named = layout.expected.has(name, block.index)
    if is_named and block.is_missing:
        faults.damage("MISSING_FILE", block.key, "the file is missing", advice(name))
    elif block.values is not None and not is_named:
        faults.damage("UNNAMED_FILE", block.key, "the file exists, but the case does not name it")


def _check_label(layout: Layout, row: int, extent: Index3, metadata: dict[str, Any], faults: Faults) -> None:
    volume = _volume(layout, "label", row, extent, faults)
    points = _points(layout, row, faults)
    if volume is None:
        return
    file = f"{layout.name}/label/c/{row}"
    for index, (name, has_it, codes) in enumerate(zip(layout.annotations, metadata["annotated"], volume, strict=False)):
        if name not in layout.schemas:
            continue
        num_structures = len(layout.schemas[name].structures)
        counts = np.bincount(codes.ravel(), minlength=256)
        if not has_it and counts[1:].any():
            num_coded = counts[1:].sum()
            problem = f"the metadata say that the case has no {name!r}, but {num_coded} of its voxels have a code"
            faults.damage("NOT_ANNOTATED", file, problem)
        unknown = [int(code) for code in np.flatnonzero(counts[num_structures + 1 : IGNORE]) + num_structures + 1]
        if unknown:
            problem = f"the annotation {name!r} has the codes {unknown}, but its last structure is {num_structures}"
            faults.damage("LABEL_CODES", file, problem)
        stored_counts = metadata.get("foreground_count")
        if stored_counts is not None and index < len(stored_counts):
            for problem in _miscounted(layout, name, stored_counts[index], counts):
                faults.damage("WRONG_COUNT", f"{layout.name}/foreground_count", problem)
        if points is not None and index < len(points):
            for problem in _misplaced(layout, name, points[index], codes, counts):
                faults.damage("WRONG_POINTS", f"{layout.name}/foreground/c/{row}", problem)


def _points(layout: Layout, row: int, faults: Faults) -> Any:
    """The sampled voxels of a case's structures; None if they cannot be read."""
    array = layout.arrays.get("foreground")
    if array is None or row >= array.shape[0]:
        return None
    before = len(faults.found)
    points = np.full(array.shape[1:], array.fill_value, dtype=array.dtype)
    for block in decoded_blocks(array, faults, row):
        _check_named(layout, row, "foreground", block, faults)
        if block.values is not None:
            points[block.region[1:]] = block.values[0]
    return points if len(faults.found) == before else None


def _miscounted(layout: Layout, name: str, stored_counts: Any, actual_counts: Any) -> Iterator[str]:
    for index, structure in enumerate(layout.schemas[name].structures):
        count = stored_counts[index] if index < len(stored_counts) else 0
        if count != actual_counts[index + 1]:
            yield f"{name!r} has {actual_counts[index + 1]} voxels of {structure.name!r}, but {count} are recorded"


def _misplaced(layout: Layout, name: str, points: Any, codes: Any, counts: Any) -> Iterator[str]:
    for index, structure in enumerate(layout.schemas[name].structures[: len(points)]):
        sampled = points[index][points[index][:, 0] >= 0]
        expected = min(int(counts[index + 1]), schema.FOREGROUND_POINTS)
        if len(sampled) != expected:
            yield f"{name!r} has {len(sampled)} sampled voxels of {structure.name!r} instead of {expected}"
        elif len(sampled) and not _are_all_on(sampled, codes, index + 1):
            yield f"sampled voxels of {structure.name!r} in {name!r} are outside of it"


def _are_all_on(points: Any, codes: Any, code: int) -> bool:
    are_inside = ((points >= 0) & (points < codes.shape)).all()
    return bool(are_inside and (codes[tuple(points.T)] == code).all())
