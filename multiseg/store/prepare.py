"""One case from its files to arrays for the store: oriented, on one grid, masked, normalised, cropped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from multiseg.errors import LabelError, ModalityError, SourceError, UsageError
from multiseg.labels import LabelSchema
from multiseg.modalities import in_canonical_order
from multiseg.store.cases import CaseFiles, LabelFile, Majority
from multiseg.store.grids import Grid, bounding_box, resample, resample_codes
from multiseg.store.reading import read_volume
from multiseg.store.volumes import Volume, axis_codes, same_grid, to_ras
from multiseg.types import Codes, Images, Mask

MIN_COVERAGE = 0.01
"""A file that covers less than this share of the reference image's box does not belong to it."""
MAX_VOXELS = 2**30
"""A case with more voxels on the store's grid (1024^3) has a wrong voxel size in its header."""
BRAIN_ML = (500, 2500)
"""A mask of another size is looked at by a person: brains, from newborns to giants, lie between."""
STRIPPED_SHARE = 0.8
"""A brain with zeros around it fills about half of its box; beyond this share there is more than brain."""
DISAGREE = ("refuse", "world", "array")


@dataclass(frozen=True)
class Recipe:
    """How every case of a database is prepared. Stored with the data and with every model.

    Attributes:
        spacing_mm: voxel size of the store along i, j, k.
        reference: the sequence whose box becomes the case's grid; "" takes the one that the first
            annotation was drawn on, else the first in canonical order.
        brain_mask: "file" (given with each case) or "nonzero" (each sequence's own non-zero voxels).
        headers_disagree: for a label or mask with a sequence's shape but another place in space:
            "refuse", trust the "world" (headers), or trust the "array" (same voxels).

    Raises:
        UsageError: `headers_disagree` is none of these.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reference: str = ""
    brain_mask: str = "nonzero"
    headers_disagree: str = "refuse"
    normalise: str = "zscore"

    def __post_init__(self) -> None:
        if self.headers_disagree not in DISAGREE:
            raise UsageError(f"headers_disagree {self.headers_disagree!r} is none of {', '.join(DISAGREE)}.")

    def to_json(self) -> dict[str, Any]:
        """As stored. What to believe when headers disagree is decided case by case, so it is not part of it."""
        kept = {key: value for key, value in asdict(self).items() if key != "headers_disagree"}
        return kept | {"spacing_mm": list(self.spacing_mm)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        i, j, k = data["spacing_mm"]
        return cls(**{**data, "spacing_mm": (float(i), float(j), float(k))})


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready for the store or for a model: one RAS+ grid, cropped to the brain.

    `images` is [modality i j k] in the order of `modalities`, 0 outside the brain; raw intensity is
    `images * std + mean`. `native` is the reference image as its file has it, for the way home.
    `doubts` are (code, message) pairs.
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
    doubts: tuple[tuple[str, str], ...]


def prepare_case(files: CaseFiles, schemas: Mapping[str, LabelSchema], recipe: Recipe) -> PreparedCase:
    """Read and prepare one case.

    Raises:
        SourceError, LabelError, ModalityError: what is wrong with which file; nothing is guessed.
    """
    names = in_canonical_order(sorted(files.images))
    if not names:
        raise ModalityError(
            f"case {files.case!r} has no file of a known sequence. Name its sequences: --modality NAME=T1.",
            code="NO_MODALITY",
        )
    native = {role: _read(file) for role, file in files.by_role.items()}
    doubts = [doubt for volume in native.values() for doubt in volume.doubts]
    reference = _reference(names, native, recipe)
    if recipe.reference and recipe.reference != reference:
        doubts.append(("NO_REFERENCE", f"the case has no {recipe.reference}; its grid is that of {reference}."))
    volumes = {role: to_ras(_placed(role, native, names, reference, recipe, doubts)) for role in native}
    grid = Grid(volumes[reference].affine, volumes[reference].shape).respaced(recipe.spacing_mm)
    _check_size(volumes[reference], grid, recipe)
    _check_overlap(volumes, grid, reference, doubts)

    given = _brain_on(grid, volumes["brain_mask"], doubts) if files.brain_mask else None
    labels = {name: _label_on(grid, volumes[f"label:{name}"], schemas[name], name, doubts) for name in files.labels}
    normalised = [_image_on(grid, volumes[name], given, name, doubts) for name in names]
    brain = np.any([image.mask for image in normalised], axis=0)
    _doubt_outside(labels, brain, doubts)

    labelled = [codes != 0 for codes in labels.values()]
    corner, shape = bounding_box(np.any([brain, *labelled], axis=0))
    part = tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))
    return PreparedCase(
        modalities=names,
        images=np.stack([image.voxels[part] for image in normalised]),
        labels={name: np.ascontiguousarray(codes[part]) for name, codes in labels.items()},
        grid=grid.cropped(corner, shape),
        native=Grid(native[reference].affine, native[reference].shape),
        native_header=native[reference].header,
        mean=np.array([image.mean for image in normalised]),
        std=np.array([image.std for image in normalised]),
        sources=tuple(_provenance(role, native[role], volumes[role], grid) for role in native),
        doubts=tuple(dict.fromkeys(doubts)),
    )


def _read(file: LabelFile) -> Volume:
    if isinstance(file, Majority):
        raise NotImplementedError
    return read_volume(file)


def _grid(volume: Volume) -> Grid:
    return Grid(volume.affine, volume.shape)


def _shares_grid(a: Volume, b: Volume) -> bool:
    return a.shape == b.shape and same_grid(a.affine, b.affine, a.shape)


def _reference(names: tuple[str, ...], native: Mapping[str, Volume], recipe: Recipe) -> str:
    """The sequence whose box becomes the case's grid; the rule stands at `Recipe.reference`."""
    if recipe.reference in names:
        return recipe.reference
    first_label = next((volume for role, volume in native.items() if role.startswith("label:")), None)
    if first_label is not None:
        for name in names:
            if _shares_grid(native[name], first_label):
                return name
    return names[0]


def _placed(
    role: str,
    native: Mapping[str, Volume],
    names: tuple[str, ...],
    reference: str,
    recipe: Recipe,
    doubts: list[tuple[str, str]],
) -> Volume:
    """The volume with the affine that is to be believed; see `Recipe.headers_disagree`."""
    volume = native[role]
    twins = [name for name in (reference, *names) if name != role and native[name].shape == volume.shape]
    if not twins or any(_shares_grid(native[name], volume) for name in twins):
        return volume
    said = f"{role} ({volume.path.name}) has the shape of {twins[0]} but its header puts it elsewhere"
    if role not in names and recipe.headers_disagree == "array":
        doubts.append(("HEADERS_DISAGREE", f"{said}; taken as the same voxels, as asked."))
        return replace(volume, affine=native[twins[0]].affine)
    # Two sequences of one shape may well be scanned in two places.
    if role in names or recipe.headers_disagree == "world":
        doubts.append(("HEADERS_DISAGREE", f"{said}; brought over through its header. Look at the overlay."))
        return volume
    raise SourceError(
        f"{said}. Say which to believe: --headers-disagree world (the headers) or array (the same voxels).",
        code="HEADERS_DISAGREE",
        file=str(volume.path),
    )


def _check_size(reference: Volume, grid: Grid, recipe: Recipe) -> None:
    if math.prod(grid.shape) > MAX_VOXELS:
        raise SourceError(
            f"{reference.path} has voxels of {_grid(reference).spacing_mm} mm by its header, which makes "
            f"{grid.shape} voxels of {recipe.spacing_mm} mm: too many to be a head. Are its units micrometres?",
            code="BAD_SIZE",
            file=str(reference.path),
        )


def _check_overlap(volumes: Mapping[str, Volume], grid: Grid, reference: str, doubts: list[tuple[str, str]]) -> None:
    for role, volume in volumes.items():
        coverage = _grid(volume).coverage(grid)
        if coverage < MIN_COVERAGE:
            raise SourceError(
                f"{role} ({volume.path}, shape {volume.shape}) does not overlap {reference} in space: "
                f"it covers {coverage:.0%} of its box. Is it another patient's, or its header lost?",
                code="NO_OVERLAP",
                file=str(volume.path),
            )
        if coverage < 0.5:
            doubts.append(("SMALL_OVERLAP", f"{role} covers only {coverage:.0%} of {reference}'s box."))


def _brain_on(grid: Grid, volume: Volume, doubts: list[tuple[str, str]]) -> Mask:
    values = volume.voxels
    if np.any(np.abs(values - np.rint(values)) > 0.01):
        raise SourceError(
            f"{volume.path} holds values that are no whole numbers, so it is an image and no brain mask. Give a mask "
            "of 0 and 1, or a parcellation.",
            code="NOT_A_MASK",
            file=str(volume.path),
        )
    inside = (volume.voxels > 0.5).astype(np.float32)
    brain = resample(inside, _grid(volume), grid, smooth=False) > 0.5
    if not brain.any():
        raise SourceError(
            f"{volume.path} holds no voxel above 0.5 where the images are: no brain is left.",
            code="EMPTY_BRAIN",
            file=str(volume.path),
        )
    ml = np.count_nonzero(brain) * math.prod(grid.spacing_mm) / 1000
    if not BRAIN_ML[0] <= ml <= BRAIN_ML[1]:
        doubts.append(("BRAIN_SIZE", f"the brain mask {volume.path.name} holds {ml:.0f} ml where the images are. "
                       "Is it this patient's, and a mask of the whole brain?"))  # fmt: skip
    return brain


def _label_on(grid: Grid, volume: Volume, schema: LabelSchema, name: str, doubts: list[tuple[str, str]]) -> Codes:
    try:
        codes = schema.encode(volume.voxels)
    except LabelError as error:
        said = str(error).replace('--labels "', f'--labels "{name}:')
        message = f"annotation {name!r} ({volume.path}): {said}"
        raise LabelError(message, code="LABEL_CODES", file=str(volume.path)) from error
    moved = resample_codes(codes, _grid(volume), grid)
    source_ml, ml = float(np.prod(_grid(volume).spacing_mm)) / 1000, float(np.prod(grid.spacing_mm)) / 1000
    for code, structure in enumerate(schema.structures, start=1):
        before, after = np.count_nonzero(codes == code) * source_ml, np.count_nonzero(moved == code) * ml
        if before and not after:
            doubts.append(("STRUCTURE_LOST", f"{structure.name} ({before:.3g} ml) is lost on the store's grid."))
        elif before > 0.5 and abs(after / before - 1) > 0.2:
            doubts.append(("STRUCTURE_CHANGED", f"{structure.name}: {before:.3g} ml became {after:.3g} ml."))
    return moved


@dataclass(frozen=True, eq=False)
class _Normalised:
    voxels: Float[np.ndarray, "i j k"]
    mask: Mask
    mean: float
    std: float


def _image_on(grid: Grid, volume: Volume, given: Mask | None, name: str, doubts: list[tuple[str, str]]) -> _Normalised:
    """Resampled, then z-scored inside the brain (Xu et al. 2024, appendix A), and 0 outside it."""
    image = resample(volume.voxels, _grid(volume), grid)
    if given is None:
        nonzero = volume.voxels != 0
        inside = nonzero.astype(np.float32)
        mask = resample(inside, _grid(volume), grid, smooth=False) > 0.5
        # What the zeros around the brain took away at its border is given back.
        image = np.where(mask, image / np.maximum(resample(inside, _grid(volume), grid), 0.25), 0)
        if nonzero.mean() > STRIPPED_SHARE:
            doubts.append(
                ("NO_BACKGROUND", f"{name}: {nonzero.mean():.0%} of the voxels are not zero, so skull and air count as "
                 "brain. Give a brain mask: --brain-mask.")
            )  # fmt: skip
    else:
        mask = given & (resample(np.ones(volume.shape, dtype=np.float32), _grid(volume), grid) > 0.5)
    values = image[mask].astype(np.float64)
    if values.size == 0:
        message = f"{name} ({volume.path}) is 0 everywhere in the brain."
        raise SourceError(message, code="EMPTY_IMAGE", file=str(volume.path))
    mean, std = float(values.mean()), float(values.std())
    # A mask's own border has contrast once it is resampled, so its voxels are looked at as well.
    if _is_constant(values) or _is_constant(volume.voxels[volume.voxels != 0]):
        message = f"{name} ({volume.path}) is constant ({mean:.6g}) in the brain. Is this a mask?"
        raise SourceError(message, code="CONSTANT_IMAGE", file=str(volume.path))
    with np.errstate(over="ignore"):
        scored = np.clip((image - mean) / std, -60_000, 60_000)
    return _Normalised(np.where(mask, scored, 0).astype(np.float16), mask, mean, std)


def _is_constant(values: Num[np.ndarray, " voxel"]) -> bool:
    low, high = float(values.min()), float(values.max())
    return high - low <= 1e-6 * max(abs(low), abs(high))


def _doubt_outside(labels: Mapping[str, Codes], brain: Mask, doubts: list[tuple[str, str]]) -> None:
    for name, codes in labels.items():
        total, outside = np.count_nonzero(codes), np.count_nonzero(codes[~brain])
        if outside > 0.01 * total:
            doubts.append(
                (
                    "LABEL_OUTSIDE_BRAIN",
                    f"{outside / total:.0%} of annotation {name!r} lies outside the brain.",
                )
            )


def _provenance(role: str, native: Volume, oriented: Volume, grid: Grid) -> dict[str, Any]:
    """Where one array came from and each step it took, for people to read."""
    axes = axis_codes(native.affine)
    steps = [] if axes == "RAS" else [f"turned from {axes} to RAS"]
    if not same_grid(oriented.affine, to_ras(native).affine, oriented.shape):
        steps.insert(0, "header not believed: taken as the same voxels as the images")
    if not (oriented.shape == grid.shape and same_grid(oriented.affine, grid.affine, grid.shape)):
        steps.append("argmax of linear shares" if role.startswith("label:") else "linear interpolation")
    if not role.startswith("label:") and role != "brain_mask":
        steps.append("z-score inside the brain, 0 outside")
    size = [round(mm, 4) for mm in _grid(native).spacing_mm]
    return {"role": role, "file": native.path.name, "sha256": native.sha256, "shape": list(native.shape),
            "voxel_mm": size, "axes": axes, "steps": steps}  # fmt: skip
