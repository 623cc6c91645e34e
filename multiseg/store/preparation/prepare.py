"""Prepare one case for the store: read its files, align them in space, mask, normalise and crop them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from multiseg.errors import ModalityError
from multiseg.labels import LabelSchema
from multiseg.modalities import in_canonical_order
from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles, Majority
from multiseg.store.findings import Doubt
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import Volume, axis_codes
from multiseg.store.preparation.boxes import Box, box_around, box_of, sizes, starts, to_outer, within
from multiseg.store.preparation.brain import check_brains, find_brains
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.labelling import check_labels, counts_of, read_label, resample_label
from multiseg.store.preparation.normalisation import Normalised, normalise, remove_bias
from multiseg.store.preparation.outside import subtract_outside
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.segmentation import refuse_segmentation
from multiseg.store.preparation.space import Scene, lay_out
from multiseg.types import Codes, Images, Mask


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready for the store or for a model: on one RAS+ grid, cropped to the brain.

    Attributes:
        images: in the order of `modalities`, 0 outside the brain; the raw intensity is `images * std + mean` (see
            `normalisation.Normalised`).
        native, native_header: grid and NIfTI header of the reference image's file, to write predictions on it.
        sources: for every file, its origin and each step of its preparation.
        content: digests that recognise each sequence's scan in any file, compression and orientation.
        outside: the value of each file around the brain, mostly 0.
        brain_ml: volume of the voxels that are brain in any sequence, as stored.
        structures_ml: volume of every structure as stored, by annotation and name.
    """

    modalities: tuple[str, ...]
    images: Images
    labels: dict[str, Codes]
    grid: Grid
    native: Grid
    native_header: bytes
    mean: Float[np.ndarray, " modality"]
    std: Float[np.ndarray, " modality"]
    sources: tuple[dict[str, Any], ...]
    doubts: tuple[Doubt, ...]
    content: tuple[str, ...]
    outside: Float[np.ndarray, " modality"]
    brain_ml: float
    structures_ml: dict[str, dict[str, float]]

    @property
    def intensity(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the raw values, by sequence."""
        return {n: (float(m), float(s)) for n, m, s in zip(self.modalities, self.mean, self.std, strict=True)}

    @property
    def intensity_above_outside(self) -> dict[str, tuple[float, float]]:
        """As `intensity`, after subtracting the value outside the brain."""
        return {n: (m - float(o), s) for (n, (m, s)), o in zip(self.intensity.items(), self.outside, strict=True)}


BrainFinder: TypeAlias = Callable[[Scene, Journal], Volume]
"""Makes the brain mask of a case that has none, in RAS+."""


def prepare_case(
    files: CaseFiles,
    schemas: Mapping[str, LabelSchema],
    recipe: Recipe,
    only: Collection[str] = (),
    find_brain: BrainFinder | None = None,
) -> PreparedCase:
    """Read and prepare one case.

    Args:
        find_brain: makes the case's brain mask; the recipe's rule is then "file".
        only: sequences to prepare (all if empty). The reference still gives the grid, the brain and the alignment of
            the others.

    Raises:
        SourceError, LabelError, ModalityError: a file or the case is invalid.
        UsageError: the recipe's brain extraction cannot be run.
    """
    with one_case(files.case, files.paths):
        return _prepare(files, schemas, recipe, only, find_brain)


def _prepare(
    files: CaseFiles,
    schemas: Mapping[str, LabelSchema],
    recipe: Recipe,
    only: Collection[str],
    find_brain: BrainFinder | None,
) -> PreparedCase:
    journal = Journal()
    scene = read_scene(files, schemas, recipe, journal)
    if find_brain is not None:
        scene = replace(scene, volumes={**scene.volumes, "brain_mask": find_brain(scene, journal)})
    # All sequences are aligned first, so that the choice does not change the grid.
    if only:
        scene = replace(scene, names=tuple(name for name in scene.names if name in only))
    content = tuple(content_of(scene.volumes[name], scene.filled[name]) for name in scene.names)
    _warn_of_copies(scene, content, journal)
    labels = {
        name: resample_label(scene.grid, scene.volumes[f"label:{name}"], schemas[name], name, journal)
        for name in files.labels
    }
    images = {}
    brain_images = find_brains(scene, recipe, journal)
    check_brains(brain_images, scene, recipe, journal)
    for name, brain_image in brain_images.items():
        if recipe.n4:
            brain_image = remove_bias(name, brain_image, scene.grid.spacing_mm, journal)
        images[name] = normalise(name, scene.volumes[name], brain_image, recipe, journal)
    box = _box(images, labels)
    stacked, brain = _stacked(images, box)
    for name in images:
        journal.step(name, _crop_text(scene, box))
    cropped = {name: np.ascontiguousarray(codes[box]) for name, codes in labels.items()}
    check_labels(cropped, files.labels, schemas, brain, scene.grid.spacing_mm, journal)
    for name in labels:
        journal.step(f"label:{name}", _crop_text(scene, box))
    return PreparedCase(
        modalities=scene.names,
        images=stacked,
        labels=cropped,
        grid=scene.grid.part(box),
        native=grid_of(scene.home),
        native_header=scene.home.header,
        mean=np.array([image.mean for image in images.values()]),
        std=np.array([image.std for image in images.values()]),
        sources=_sources(files, scene, images, journal),
        doubts=tuple(journal.doubts),
        content=content,
        outside=np.array([scene.volumes[name].outside for name in images]),
        brain_ml=float(np.count_nonzero(brain)) * _voxel_ml(scene.grid),
        structures_ml={name: _structures_ml(codes, schemas[name], scene.grid) for name, codes in cropped.items()},
    )


def read_scene(files: CaseFiles, schemas: Mapping[str, LabelSchema], recipe: Recipe, journal: Journal) -> Scene:
    """Read a case's files, encode its labels, and align them in space.

    Raises:
        SourceError, LabelError, ModalityError: as `prepare_case`.
    """
    names = in_canonical_order(sorted(files.images))
    if not names:
        message = f"case {files.case!r} has no file of a known sequence. Name its sequences: --modality NAME=T1."
        raise ModalityError(message, code="NO_MODALITY")
    native: dict[str, Volume] = {}
    for role, file in files.by_role.items():
        label = role.removeprefix("label:")
        if label != role:
            native[role] = read_label(label, file, schemas[label], journal)
        else:
            assert not isinstance(file, Majority)
            native[role] = read_volume(file)
            journal.warn_all(native[role].doubts)
        if role in names:
            native[role] = subtract_outside(role, native[role], journal)
    scene = lay_out(names, native, recipe, journal)
    for name in names:
        refuse_segmentation(name, scene.volumes[name], scene.filled[name], journal)
    return scene


def content_of(volume: Volume, box: Box | None) -> str:
    """A digest of a RAS+ volume's shape and of its voxels in `box`, the box of those that are not 0.

    It is the same for every file, compression and orientation.
    """
    digest = hashlib.sha256(repr((volume.shape, None if box is None else (starts(box), sizes(box)))).encode())
    if box is not None:
        digest.update(np.ascontiguousarray(volume.voxels[box], dtype="<f4").data)
    return digest.hexdigest()


def _warn_of_copies(scene: Scene, content: Sequence[str], journal: Journal) -> None:
    for index, name in enumerate(scene.names):
        first = content.index(content[index])
        if first < index:
            other = scene.names[first]
            files = f"{scene.native[other].path.name} and {scene.native[name].path.name}"
            text = f"{other} and {name} have the same voxels ({files}). Leave out the one with the wrong name."
            journal.warn("COPIED_SEQUENCE", text)


def _box(images: Mapping[str, Normalised], labels: Mapping[str, Codes]) -> Box:
    """The smallest box that contains every brain and every label."""
    boxes = []
    for image in images.values():
        tight = box_of(image.mask)
        if tight is not None:
            boxes.append(to_outer(tight, image.box))
    boxes += [tight for codes in labels.values() if (tight := box_of(codes != 0)) is not None]
    return box_around(boxes)


def _voxel_ml(grid: Grid) -> float:
    return math.prod(grid.spacing_mm) / 1000


def _structures_ml(codes: Codes, schema: LabelSchema, grid: Grid) -> dict[str, float]:
    counts = counts_of(codes)
    return {name: float(counts[code]) * _voxel_ml(grid) for code, name in enumerate(schema.names, start=1)}


def _stacked(images: Mapping[str, Normalised], box: Box) -> tuple[Images, Mask]:
    """The images in a box, and the voxels there that are brain in any of them."""
    brain = np.zeros(sizes(box), dtype=bool)
    stacked = np.zeros((len(images), *sizes(box)), dtype=np.float16)
    for index, image in enumerate(images.values()):
        inner, outer = _overlap(image.box, box)
        stacked[index][outer] = image.voxels[inner]
        brain[outer] |= image.mask[inner]
    return stacked, brain


def _overlap(first: Box, second: Box) -> tuple[Box, Box]:
    """The intersection of two boxes, in indices within the first and within the second."""
    i, j, k = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    return within((i, j, k), first), within((i, j, k), second)


def _crop_text(scene: Scene, box: Box) -> str:
    whole, part = ("x".join(map(str, shape)) for shape in (scene.grid.shape, sizes(box)))
    return f"cropped from {whole} to {part} voxels at {starts(box)}"


def _sources(
    files: CaseFiles, scene: Scene, images: Mapping[str, Normalised], journal: Journal
) -> tuple[dict[str, Any], ...]:
    """The origin of each array and the steps of its preparation, for people and for export."""
    return tuple(
        {
            "role": role, "file": file.name, "sha256": scene.native[role].sha256,
            "shape": list(scene.native[role].shape),
            "voxel_mm": [round(mm, 4) for mm in grid_of(scene.native[role]).spacing_mm],
            "axes": axis_codes(scene.native[role].affine), "steps": journal.steps.get(role, []),
            **({"histogram": images[role].details} if role in images and images[role].details else {}),
        }
        for role, file in files.by_role.items()
    )  # fmt: skip
