"""Whether what the store says of a case is true: its numbers, its provenance, and every one of its voxels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from multiseg.labels import IGNORE
from multiseg.store import schema
from multiseg.store.catalogue import SPLITS
from multiseg.store.checks.chunks import Block, decoded_blocks
from multiseg.store.checks.fault_collector import REDO, REPAIR, Faults, advice
from multiseg.store.checks.layout import Layout
from multiseg.store.checks.record_checks import read_record, verify_record
from multiseg.store.damage import UNREADABLE, one_line
from multiseg.store.formats.volumes import axis_codes
from multiseg.store.hierarchy import is_plain_name
from multiseg.store.preparation.boxes import box_at
from multiseg.store.preparation.grids import SAME_SPACING, Grid
from multiseg.store.preparation.plausible import Region, find_implausible
from multiseg.store.rows import digest_of_roles
from multiseg.types import Affine, Index3

ORTHONORMAL = 1e-3
"""The largest cosine between two axes of a grid that still counts as a right angle."""
OFF_CENTRE = 0.005
"""Of normalised voxels: the largest part that their sum may be of the sum of their sizes. float16 leaves a tenth."""


def verify_case(layout: Layout, row: int, faults: Faults) -> None:
    """Check one committed case; the faults are noted."""
    held = {name: values[row] for name, values in layout.columns.items() if _has_rows(name) and row < len(values)}
    _check_names(layout, held, faults)
    _check_grid(layout, held, faults)
    _check_native(layout, held, faults)
    _check_sources(layout, held, faults)
    _check_intensities(layout, held, faults)
    extent = _extent(layout, held, faults)
    if extent is not None:
        if "image" in layout.arrays and "available" in held:
            _check_image(layout, row, extent, held, faults)
        if "label" in layout.arrays and "annotated" in held:
            _check_label(layout, row, extent, held, faults)
    verify_record(layout, row, held, faults)


def verify_row(layout: Layout, row: int, faults: Faults) -> None:
    """Decode all files of a row that no case is in any more, or not yet; a replaced case still has all of its files."""
    noted = Faults(faults.database, faults.case)
    for name in ("image", "label", "foreground"):
        if name in layout.arrays and row < layout.arrays[name].shape[0]:
            for block in decoded_blocks(layout.arrays[name], noted, row):
                _check_named(layout, row, name, block, noted)
    if layout.status[row] == schema.SUPERSEDED:
        read_record(layout, row, noted)
    for finding in noted.found:
        faults.warning(finding.code, finding.file, f"of a row that holds no case: {finding.message}")


def _has_rows(name: str) -> bool:
    return name not in schema.COORDINATES or schema.COORDINATES[name].axes[0] == "case"


def _file(layout: Layout, name: str) -> str:
    return f"{layout.name}/{name}"


def _check_names(layout: Layout, held: dict[str, Any], faults: Faults) -> None:
    if "case" in held and not is_plain_name(str(held["case"])):
        faults.error("BAD_NAME", _file(layout, "case"), f"{str(held['case'])!r} is no name of a case. {REPAIR}")
    if "subject" in held and not str(held["subject"]):
        faults.error("NO_SUBJECT", _file(layout, "subject"), f"nobody is named as the subject. {REPAIR}")
    if "split" in held and str(held["split"]) not in SPLITS:
        said = f"the split {str(held['split'])!r} is none of {', '.join(SPLITS)}"
        faults.error("BAD_SPLIT", _file(layout, "split"), f"{said}. Give it one: ingest again with --split.")


def _extent(layout: Layout, held: dict[str, Any], faults: Faults) -> Index3 | None:
    if "extent" not in held:
        return None
    i, j, k = (int(n) for n in held["extent"])
    for name in ("image", "label"):
        room = layout.arrays[name].shape[2:] if name in layout.arrays else (i, j, k)
        if not all(0 < n <= most for n, most in zip((i, j, k), room, strict=True)):
            said = f"its extent {i}x{j}x{k} does not lie within the {'x'.join(map(str, room))} voxels of {name!r}"
            faults.error("BAD_EXTENT", _file(layout, "extent"), f"{said}. {REPAIR}")
            return None
    return i, j, k


def _check_grid(layout: Layout, held: dict[str, Any], faults: Faults) -> None:
    if "affine" not in held:
        return
    affine = np.asarray(held["affine"])
    wrong = _not_a_grid(affine)
    if not wrong:
        size = Grid(affine, (1, 1, 1)).spacing_mm
        columns = affine[:3, :3] / size
        cosine = float(np.abs(columns.T @ columns - np.eye(3)).max())
        if cosine > ORTHONORMAL:
            wrong = f"its axes are not at right angles (cosine {cosine:.3g})"
        elif axis_codes(affine) != "RAS":
            wrong = f"its axes run towards {axis_codes(affine)} instead of RAS"
        elif layout.recipe is not None and not np.allclose(size, layout.recipe.spacing_mm, rtol=SAME_SPACING, atol=0):
            wrong = f"its voxels have {_by(size)} mm, those of the database {_by(layout.recipe.spacing_mm)} mm"
    if wrong:
        faults.error("BAD_AFFINE", _file(layout, "affine"), f"the affine {affine.tolist()}: {wrong}. {REPAIR}")


def _not_a_grid(affine: Affine) -> str:
    if not np.isfinite(affine).all():
        return "it is not finite"
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        return "its last row is not 0 0 0 1"
    return "it maps to a plane" if abs(np.linalg.det(affine[:3, :3])) < 1e-6 else ""


def _by(numbers: Sequence[float]) -> str:
    return "x".join(f"{number:.6g}" for number in numbers)


def _check_native(layout: Layout, held: dict[str, Any], faults: Faults) -> None:
    if "native_affine" in held and (wrong := _not_a_grid(np.asarray(held["native_affine"]))):
        said = f"the file's own affine {held['native_affine'].tolist()}: {wrong}"
        faults.error("BAD_NATIVE", _file(layout, "native_affine"), f"{said}. Nothing can be written home. {REPAIR}")
    if "native_shape" in held and min(held["native_shape"]) < 1:
        said = f"the file's own shape is {held['native_shape'].tolist()}"
        faults.error("BAD_NATIVE", _file(layout, "native_shape"), f"{said}. Nothing can be written home. {REPAIR}")
    if "native_header" in held:
        head = bytes(held["native_header"])
        if {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}.isdisjoint({0, 348, 540}):
            faults.error("BAD_NATIVE", _file(layout, "native_header"), f"the file's own header is none. {REPAIR}")


def _check_sources(layout: Layout, held: dict[str, Any], faults: Faults) -> None:
    """The provenance is there for each sequence and annotation, and its digest is the one that ingest goes by."""
    if not {"sources", "source_sha256", "available", "annotated"} <= set(held):
        return
    file = _file(layout, "sources")
    try:
        digests = {str(one["role"]): str(one["sha256"]) for one in json.loads(str(held["sources"]))}
    except UNREADABLE as error:
        faults.error("BAD_SOURCES", file, f"the list of source files cannot be read: {one_line(error)}. {REPAIR}")
        return
    names = {name for name, there in zip(layout.modalities, held["available"], strict=False) if there}
    names |= {f"label:{name}" for name, there in zip(layout.annotations, held["annotated"], strict=False) if there}
    if names != set(digests) - {"brain_mask"}:
        said = f"sources are named for {', '.join(sorted(digests))}, but the case has {', '.join(sorted(names))}"
        faults.error("BAD_SOURCES", file, f"{said}. {REPAIR}")
    elif not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values()):
        faults.error("BAD_SOURCES", file, f"a source's sha256 is none. {REPAIR}")
    elif digest_of_roles(digests) != str(held["source_sha256"]):
        said = f"the digest of its sources is {str(held['source_sha256'])[:16]}..., but they make another"
        faults.error("WRONG_DIGEST", _file(layout, "source_sha256"), f"{said}. {REPAIR}")


def _check_intensities(layout: Layout, held: dict[str, Any], faults: Faults) -> None:
    """A mean and a standard deviation for each sequence that the case has, and for no other."""
    if not {"available", "intensity_mean", "intensity_std"} <= set(held):
        return
    for name, there, mean, std in zip(
        layout.modalities, held["available"], held["intensity_mean"], held["intensity_std"], strict=False
    ):
        is_good = math.isfinite(mean) and math.isfinite(std) and std > 0
        if is_good if not there else not is_good:
            said = f"the case has {'' if there else 'no '}{name}, but its mean is {mean:g} and its deviation {std:g}"
            faults.error("BAD_INTENSITY", _file(layout, "intensity_mean"), f"{said}. {REPAIR}")


def _check_image(layout: Layout, row: int, extent: Index3, held: dict[str, Any], faults: Faults) -> None:
    available = held["available"]
    volume = _volume(layout, "image", row, extent, faults)
    if volume is None:
        return
    file = f"{layout.name}/image/c/{row}"
    is_scored = layout.recipe is not None and layout.recipe.normalise in ("zscore", "histogram")
    for name, there, image in zip(layout.modalities, available, volume, strict=False):
        num_bad = int(np.count_nonzero(~np.isfinite(image)))
        if num_bad:
            faults.error("NOT_FINITE", file, f"{name} holds {num_bad} voxels that are NaN or infinite. {REDO}")
        elif not there and image.any():
            said = f"the case is said to have no {name}, but there are {np.count_nonzero(image)} voxels of it"
            faults.error("NOT_AVAILABLE", file, f"{said}. {REPAIR}")
        elif there and not image.any():
            faults.error("EMPTY_IMAGE", file, f"{name} is 0 everywhere. {REDO}")
        elif there and is_scored and (off := _off_centre(image)) > OFF_CENTRE:
            said = f"the normalised voxels of {name} do not balance around 0 ({off:.1%} of their size is left)"
            faults.error("NOT_NORMALISED", file, f"{said}: part of it was lost or changed. {REDO}")
    if not faults.found:
        _doubt_brains(layout, volume, held, faults)


def _doubt_brains(
    layout: Layout, volume: Shaped[np.ndarray, "modality i j k"], held: dict[str, Any], faults: Faults
) -> None:
    """Whether the stored voxels that are not 0 can be a brain, in what the reference's scan has seen."""
    if layout.recipe is None or not {"affine", "native_affine", "native_shape"} <= set(held):
        return
    x, y, z = (int(n) for n in held["native_shape"])
    view = Grid(np.asarray(held["native_affine"]), (x, y, z))
    # The stored box was cut out of a grid that may have gone on.
    i, j, k = (slice(-1, n + 1) for n in volume.shape[1:])
    around = Grid(np.asarray(held["affine"]), volume.shape[1:]).part((i, j, k))
    box = box_at((1, 1, 1), volume.shape[1:])
    regions = {
        name: Region(box, image != 0, view)
        for name, there, image in zip(layout.modalities, held["available"], volume, strict=False)
        if there
    }
    for code, text in find_implausible(regions, around, layout.recipe.brain_mask):
        faults.warning(code, f"{layout.name}/image", text)


def _off_centre(image: Shaped[np.ndarray, "i j k"]) -> float:
    sums = [(float(part.sum(dtype=np.float64)), float(np.abs(part).sum(dtype=np.float64))) for part in image]
    return abs(sum(total for total, _ in sums)) / sum(size for _, size in sums)


def _volume(
    layout: Layout, name: str, row: int, extent: Index3, faults: Faults
) -> Shaped[np.ndarray, "channel i j k"] | None:
    """All channels of a case, or None where any of it is damaged or not there.

    What lies outside the case's extent, where readers expect nothing, is noted.
    """
    array = layout.arrays[name]
    volume = np.zeros((array.shape[1], *extent), dtype=array.dtype)
    num_outside, before = 0, len(faults.found)
    absent: list[tuple[str, tuple[slice, ...]]] = []
    for block in decoded_blocks(array, faults, row):
        inside = tuple(slice(p.start, min(p.stop, n)) for p, n in zip(block.region[2:], extent, strict=True))
        is_wanted = all(part.stop > part.start for part in inside)
        _check_named(layout, row, name, block, faults)
        if block.is_missing and is_wanted and row not in layout.expected.shards:
            absent.append((block.key, inside))
        if block.values is None:
            continue
        values = block.values[0]
        num_outside += int(np.count_nonzero(values))
        if is_wanted:
            own = values[:, *(slice(0, p.stop - p.start) for p in inside)]
            volume[block.region[1], *inside] = own
            num_outside -= int(np.count_nonzero(own))
    if num_outside:
        said = f"{name} holds {num_outside} voxels outside the extent {'x'.join(map(str, extent))}"
        faults.error("OUTSIDE_EXTENT", f"{layout.name}/{name}/c/{row}", f"{said}. {REPAIR}")
    for key, region in absent if name == "image" else ():
        if _goes_on(volume, region):
            said = "the file is not there, but the brain goes on where its voxels begin"
            faults.error("MISSING_FILE", key, f"{said}. {REDO}")
    is_damaged = any(finding.code in ("DAMAGED_CHUNK", "MISSING_FILE") for finding in faults.found[before:])
    return None if is_damaged else volume


def _goes_on(volume: Shaped[np.ndarray, "channel i j k"], region: tuple[slice, ...]) -> bool:
    """Whether voxels that are not 0 lie at the faces of an empty box."""
    for axis, part in enumerate(region):
        for at in (part.start - 1, part.stop):
            beside = [*region[:axis], slice(at, at + 1), *region[axis + 1 :]]
            if 0 <= at < volume.shape[axis + 1] and volume[:, *beside].any():
                return True
    return False


def _check_named(layout: Layout, row: int, name: str, block: Block, faults: Faults) -> None:
    """Whether a file of a case is there if, and only if, the case names it."""
    if row not in layout.expected.shards:
        return
    is_named = layout.expected.has(name, block.index)
    if is_named and block.is_missing:
        faults.error("MISSING_FILE", block.key, f"the file is not there. {advice(name)}")
    elif block.values is not None and not is_named:
        faults.error("UNNAMED_FILE", block.key, f"the file is there, but the case names none in its place. {REPAIR}")


def _check_label(layout: Layout, row: int, extent: Index3, held: dict[str, Any], faults: Faults) -> None:
    volume = _volume(layout, "label", row, extent, faults)
    points = _points(layout, row, faults)
    if volume is None:
        return
    file = f"{layout.name}/label/c/{row}"
    for at, (name, there, codes) in enumerate(zip(layout.annotations, held["annotated"], volume, strict=False)):
        if name not in layout.schemas:
            continue
        num = len(layout.schemas[name].structures)
        found = np.bincount(codes.ravel(), minlength=256)
        if not there and found[1:].any():
            said = f"the case is said to have no annotation {name!r}, but {found[1:].sum()} voxels have a code"
            faults.error("NOT_ANNOTATED", file, f"{said}. {REPAIR}")
        unknown = [int(code) for code in np.flatnonzero(found[num + 1 : IGNORE]) + num + 1]
        if unknown:
            said = f"the annotation {name!r} holds the codes {unknown}, but its structures go up to {num}"
            faults.error("LABEL_CODES", file, f"{said}. {REPAIR}")
        noted = held.get("foreground_count")
        if noted is not None and at < len(noted):
            for said in _miscounted(layout, name, noted[at], found):
                faults.error("WRONG_COUNT", _file(layout, "foreground_count"), f"{said}. {REPAIR}")
        if points is not None and at < len(points):
            for said in _misplaced(layout, name, points[at], codes, found):
                faults.error("WRONG_POINTS", f"{layout.name}/foreground/c/{row}", f"{said}. {REPAIR}")


def _points(layout: Layout, row: int, faults: Faults) -> Any:
    """The sampled voxels of a case's structures, or None where they cannot be read."""
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


def _miscounted(layout: Layout, name: str, counts: Any, found: Any) -> Iterator[str]:
    for at, structure in enumerate(layout.schemas[name].structures):
        count = counts[at] if at < len(counts) else 0
        if count != found[at + 1]:
            yield f"{name!r} has {found[at + 1]} voxels of {structure.name!r}, but {count} are noted"


def _misplaced(layout: Layout, name: str, points: Any, codes: Any, found: Any) -> Iterator[str]:
    for at, structure in enumerate(layout.schemas[name].structures[: len(points)]):
        own = points[at][points[at][:, 0] >= 0]
        expected = min(int(found[at + 1]), schema.FOREGROUND_POINTS)
        if len(own) != expected:
            yield f"{len(own)} sampled voxels of {structure.name!r} in {name!r} are noted instead of {expected}"
        elif len(own) and not _all_on(own, codes, at + 1):
            yield f"sampled voxels of {structure.name!r} in {name!r} do not lie on it"


def _all_on(points: Any, codes: Any, code: int) -> bool:
    if not ((points >= 0) & (points < codes.shape)).all():
        return False
    return bool((codes[tuple(points.T)] == code).all())
