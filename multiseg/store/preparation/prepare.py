"""One case from its files to arrays for the store: laid out in space, masked, normalised, cropped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from multiseg.errors import ModalityError
from multiseg.labels import LabelSchema
from multiseg.modalities import in_canonical_order
from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles, Majority
from multiseg.store.findings import Doubt
from multiseg.store.formats.reading import read_volume
from multiseg.store.formats.volumes import Volume, axis_codes
from multiseg.store.preparation.boxes import Box, box_around, box_of, seen_from_outside, sizes, starts, within
from multiseg.store.preparation.brain import brains, doubt_brains
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.intensity import Normalised, normalised, without_bias
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.labelling import check_labels, counts_of, label_on, read_label
from multiseg.store.preparation.outside import counted_from_outside
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.segmentation import refuse_segmentation
from multiseg.store.preparation.space import Scene, lay_out
from multiseg.types import Codes, Images


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready for the store or for a model: one RAS+ grid, cropped to the brain.

    `images` is [modality i j k] in the order of `modalities`, 0 outside the brain; raw intensity is
    `images * std + mean` (see `intensity.Normalised`). `native` is the reference image as its file has it,
    for the way home. `sources` says for every file where it came from and each step it took. `content`
    recognises each sequence's scan in any file, compression and orientation. `outside` is what each file has
    around the brain, mostly 0. `brain_ml` is the volume of the
    voxels that any sequence calls brain, `structures_ml` that of every structure by annotation and name, both as
    stored.
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
        """The same with the value outside the brain as 0, whatever constant the file has there."""
        return {n: (m - float(o), s) for (n, (m, s)), o in zip(self.intensity.items(), self.outside, strict=True)}


def prepare_case(
    files: CaseFiles, schemas: Mapping[str, LabelSchema], recipe: Recipe, only: Collection[str] = ()
) -> PreparedCase:
    """Read and prepare one case.

    Args:
        only: sequences to prepare (all when empty). Of the others the reference still lends its grid, and the
            brain and the place of the rest are found by it where the recipe says so.

    Raises:
        SourceError, LabelError, ModalityError: what is wrong with which file; nothing is guessed.
        UsageError: the recipe's brain extraction cannot be run.
    """
    with one_case(files.case, files.paths):
        return _prepared(files, schemas, recipe, only)


def _prepared(
    files: CaseFiles, schemas: Mapping[str, LabelSchema], recipe: Recipe, only: Collection[str]
) -> PreparedCase:
    journal = Journal()
    scene = read_scene(files, schemas, recipe, journal)
    if only:
        scene = replace(scene, names=tuple(name for name in scene.names if name in only))
    content = tuple(content_of(scene.volumes[name], scene.filled[name]) for name in scene.names)
    _doubt_copies(scene, content, journal)
    labels = {
        name: label_on(scene.grid, scene.volumes[f"label:{name}"], schemas[name], name, journal)
        for name in files.labels
    }
    images = {}
    places = brains(scene, recipe, journal)
    doubt_brains(places, scene, recipe, journal)
    for name, place in places.items():
        flat = without_bias(name, place, scene.grid.spacing_mm, journal) if recipe.n4 else place
        images[name] = normalised(name, scene.volumes[name], flat, recipe, journal)
    box = _box(images, labels)
    brain = np.zeros(sizes(box), dtype=bool)
    stacked = np.zeros((len(images), *sizes(box)), dtype=np.float16)
    for at, (name, image) in enumerate(images.items()):
        inner, outer = _overlap(image.box, box)
        stacked[at][outer] = image.voxels[inner]
        brain[outer] |= image.mask[inner]
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
    """Read a case's files, labels as codes, and lay them out in space.

    Raises:
        SourceError, LabelError, ModalityError: as `prepare_case`.
    """
    names = in_canonical_order(sorted(files.images))
    if not names:
        raise ModalityError(
            f"case {files.case!r} has no file of a known sequence. Name its sequences: --modality NAME=T1.",
            code="NO_MODALITY",
        )
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
            native[role] = counted_from_outside(role, native[role], journal)
    scene = lay_out(names, native, recipe, journal)
    for name in names:
        refuse_segmentation(name, scene.volumes[name], scene.filled[name], journal)
    return scene


def content_of(volume: Volume, box: Box | None) -> str:
    """A digest of a RAS+ volume's shape and voxels, whatever file it lies in, from the box of those that are not 0."""
    digest = hashlib.sha256(repr((volume.shape, None if box is None else (starts(box), sizes(box)))).encode())
    if box is not None:
        digest.update(np.ascontiguousarray(volume.voxels[box], dtype="<f4").data)
    return digest.hexdigest()


def _doubt_copies(scene: Scene, content: Sequence[str], journal: Journal) -> None:
    for at, name in enumerate(scene.names):
        first = content.index(content[at])
        if first < at:
            other = scene.names[first]
            files = f"{scene.native[other].path.name} and {scene.native[name].path.name}"
            text = (
                f"{other} and {name} hold the same voxels ({files}). Leave out the one that is not what its name says."
            )
            journal.warn("COPIED_SEQUENCE", text)


def _box(images: Mapping[str, Normalised], labels: Mapping[str, Codes]) -> Box:
    """The smallest box that holds every brain and every label."""
    boxes = []
    for image in images.values():
        tight = box_of(image.mask)
        if tight is not None:
            boxes.append(seen_from_outside(tight, image.box))
    boxes += [found for codes in labels.values() if (found := box_of(codes != 0)) is not None]
    return box_around(boxes)


def _voxel_ml(grid: Grid) -> float:
    return math.prod(grid.spacing_mm) / 1000


def _structures_ml(codes: Codes, schema: LabelSchema, grid: Grid) -> dict[str, float]:
    counts = counts_of(codes)
    return {name: float(counts[code]) * _voxel_ml(grid) for code, name in enumerate(schema.names, start=1)}


def _overlap(one: Box, other: Box) -> tuple[Box, Box]:
    """What two boxes share, as each of them sees it."""
    i, j, k = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return within((i, j, k), one), within((i, j, k), other)


def _crop_text(scene: Scene, box: Box) -> str:
    whole, part = ("x".join(map(str, shape)) for shape in (scene.grid.shape, sizes(box)))
    return f"cropped from {whole} to {part} voxels at {starts(box)}"


def _sources(
    files: CaseFiles, scene: Scene, images: Mapping[str, Normalised], journal: Journal
) -> tuple[dict[str, Any], ...]:
    """Where each array came from and each step it took, for people to read and for the way back."""
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
