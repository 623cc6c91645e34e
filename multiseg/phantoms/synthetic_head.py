"""A synthetic head with lesions, computed from formulas.

A head is a set of signed distances in millimetres, so it can be evaluated on any grid: two scans of a case on different
grids show the same brain and the same lesions. Anatomy, contrasts and noise are plausible but not measured: results on
phantoms say nothing about patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from multiseg.phantoms.raw_head import OUTER_SIGNAL, Outer, outer_tissues
from multiseg.phantoms.surfaces import Field, Points, Triple, depth_mm, fraction
from multiseg.types import Codes, Voxels

Pathology: TypeAlias = Literal[
    "healthy", "multiple sclerosis", "glioma", "ischaemic stroke", "white matter hyperintensities", "chronic stroke"
]

# Signal of (CSF, grey matter, white matter, scalp), then of the lesions by pathology and code; air is 0.
_TISSUE_SIGNAL = {
    "T1": (0.24, 0.58, 0.82, 0.95),
    "T1c": (0.26, 0.60, 0.82, 1.0),
    "T2": (1.0, 0.62, 0.45, 0.50),
    "FLAIR": (0.14, 0.60, 0.50, 0.55),
    "PD": (0.78, 0.84, 0.66, 0.50),
    "DWI": (0.12, 0.56, 0.46, 0.15),
    "ADC": (1.0, 0.31, 0.27, 0.20),
}
_LESION_SIGNAL: dict[Pathology, dict[int, dict[str, float]]] = {
    "healthy": {},
    "multiple sclerosis": {1: {"T1": 0.56, "T2": 0.80, "FLAIR": 0.92, "PD": 1.0}},
    "glioma": {
        1: {"T1": 0.34, "T1c": 0.36, "T2": 0.92, "FLAIR": 0.42},
        2: {"T1": 0.60, "T1c": 0.60, "T2": 0.82, "FLAIR": 0.88},
        4: {"T1": 0.54, "T1c": 1.12, "T2": 0.70, "FLAIR": 0.76},
    },
    "ischaemic stroke": {1: {"DWI": 0.92, "ADC": 0.15, "FLAIR": 0.70}},
    "white matter hyperintensities": {1: {"T1": 0.64, "FLAIR": 0.84}},
    "chronic stroke": {1: {"T1": 0.36, "T2": 0.90, "FLAIR": 0.80}},  # a cavity with its scar, as one
}
_TEXTURE = {"DWI": 0.11}  # relative variation of healthy tissue; 0.04 in other sequences
_NOISE = 0.03
_PIA_MM = 0.5  # what a brain mask holds beyond the hull
FIELD_OF_VIEW_MM = (144.0, 176.0, 138.0)  # left-right, back-front, foot-head
_DEEP_GREY = (  # centre and radii in mm on one side: thalamus, caudate head, lentiform nucleus
    ((10.0, -14.0, 0.0), (8.0, 13.0, 8.0)),
    ((12.0, 20.0, 3.0), (5.0, 9.0, 9.0)),
    ((25.0, 4.0, -1.0), (6.5, 15.0, 9.0)),
)


@dataclass(frozen=True)
class _Waves:
    """A smooth random function of position with mean 0 and variance 1: a sum of plane waves."""

    vectors: Float[np.ndarray, "wave 3"]
    phases: Float[np.ndarray, " wave"]


def _draw_waves(rng: np.random.Generator, length_mm: float, num_waves: int = 12) -> _Waves:
    """Draw waves of about this length in random directions."""
    directions = rng.normal(size=(num_waves, 3))
    lengths = length_mm * rng.uniform(0.8, 1.3, size=(num_waves, 1))
    vectors = 2 * np.pi * directions / np.linalg.norm(directions, axis=1, keepdims=True) / lengths
    return _Waves(vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, num_waves).astype(np.float32))


def _evaluate(points: Points, waves: _Waves) -> Field:
    """The sum of the waves at these points.

    Nothing in this module uses BLAS: its threads would compete for busy cores, and the order of its sums, and thus the
    last bits, may depend on their number.
    """
    x, y, z = points
    total = np.zeros(points.shape[1:], np.float32)
    for (a, b, c), phase in zip(waves.vectors, waves.phases, strict=True):
        total += np.cos(a * x + b * y + c * z + phase)
    return total * np.float32(np.sqrt(2 / len(waves.phases)))


@dataclass(frozen=True)
class Head:
    """The shape of one person's head, without lesions."""

    size: Triple
    warp: tuple[_Waves, _Waves, _Waves]
    folds: _Waves
    ventricle_mm: float


@dataclass(frozen=True)
class Anatomy:
    """A head on a grid: coordinates without the person's size and warp, distances in mm, and tissue fractions."""

    points: Points
    ventricle_mm: Field  # to the lateral ventricles' wall, negative inside
    horn: Field  # 1 at the frontal and occipital horns, 0 away from them
    cortex_mm: Field  # depth below the nearest outer surface or sulcus
    hull_mm: Field  # depth below the hull of the brain, without its fissures
    tissues: Float[np.ndarray, "tissue=4 *grid"]  # fractions of (CSF, grey matter, white matter, scalp)
    blur_mm: float
    outer: Outer | None = None  # face and neck, of a raw scan

    @property
    def inside_brain(self) -> Bool[np.ndarray, "*grid"]:
        return self.hull_mm > -_PIA_MM

    @property
    def brain_share(self) -> Field:
        """The fraction of each voxel that is inside the brain."""
        return fraction(self.hull_mm + _PIA_MM, self.blur_mm)


def draw_head(rng: np.random.Generator, old: bool) -> Head:
    """Draw a head at random; `old` people have wider ventricles."""
    width, depth, height = rng.uniform(0.94, 1.03, 3).tolist()
    low, high = (5.5, 8.0) if old else (3.8, 5.8)
    return Head(
        size=(width, depth, height),
        warp=(_draw_waves(rng, 110.0), _draw_waves(rng, 110.0), _draw_waves(rng, 110.0)),
        folds=_draw_waves(rng, 26.0, num_waves=28),
        ventricle_mm=float(rng.uniform(low, high)),
    )


def _brain_depth_mm(points: Points) -> tuple[Field, Field]:
    """The depth below the hull of the brain, and below the hull with its fissures."""
    x, y, z = points
    hull = np.where(
        z > 0,
        depth_mm(points, (0.0, 0.0, 0.0), (58.0, 72.0, 54.0)),
        depth_mm(points, (0.0, 0.0, 0.0), (58.0, 72.0, 44.0)),
    )
    lower = np.maximum(
        depth_mm(points, (0.0, -40.0, -45.0), (42.0, 26.0, 18.0)),
        depth_mm(points, (0.0, -20.0, -50.0), (10.0, 10.0, 30.0)),
    )
    from_centre = np.sqrt((y / 46) ** 2 + ((z - 2) / 24) ** 2)
    midline = np.abs(x) - 0.5 + 30 * np.maximum(0, 1 - from_centre)
    sylvian = np.abs(z + 3 - 0.25 * y) + np.maximum(0, 33 - np.abs(x)) + np.maximum(0, np.abs(y - 6) - 26)
    cerebrum = np.minimum(hull, np.minimum(midline, sylvian))
    return np.maximum(hull, lower), np.maximum(cerebrum, lower)


def _ventricle_distance_mm(points: Points, radius_mm: float) -> tuple[Field, Field]:
    """The distance to the lateral ventricles (two curved tubes), and the proximity to their horns."""
    x, y, z = points
    along = (y + 4) / 40
    bend = along * along
    away = np.hypot(np.abs(x) - (0.8 * radius_mm + 4 + 11 * bend), 0.75 * (z - 9 + 9 * bend))
    beyond = np.maximum(0, np.abs(along) - 0.85) * 40
    distance = np.hypot(away, beyond) - radius_mm * (1 - 0.45 * np.minimum(1, bend))
    return distance, np.exp(-(((np.abs(along) - 1) / 0.22) ** 2))


def anatomy_on(head: Head, world: Points, blur_mm: float, is_raw: bool = False) -> Anatomy:
    """Evaluate a head at world coordinates in mm. Surfaces are blurred over `blur_mm` (partial volume).

    Args:
        is_raw: whether it has a face and a neck.
    """
    axes = zip(world, head.warp, head.size, strict=True)
    points = np.stack([(axis + 2.5 * _evaluate(world, waves)) / size for axis, waves, size in axes])
    x, y, z = points
    hull, pial = _brain_depth_mm(points)
    sulcus = 4.4 * np.abs(_evaluate(world, head.folds)) + 0.7 * np.maximum(0, hull - 15)
    cortex = np.minimum(pial, sulcus)
    ventricle, horn = _ventricle_distance_mm(points, head.ventricle_mm)
    third = np.maximum(np.abs(x) - 0.3 * head.ventricle_mm, np.maximum(np.abs(y + 6) - 14, np.abs(z + 2) - 9))
    sides = np.stack([np.abs(x), y, z])
    nuclei = np.max([depth_mm(sides, centre, radii) for centre, radii in _DEEP_GREY], axis=0)

    solid = fraction(cortex - 0.8, blur_mm) * fraction(np.minimum(ventricle, third), blur_mm)
    white = solid * fraction(cortex - 4.0, blur_mm) * (1 - 0.8 * fraction(nuclei, blur_mm))
    fluid = fraction(hull + 2.5, blur_mm) - solid
    skull = np.maximum(hull, depth_mm(points, (0.0, 0.0, 0.0), (58.0, 72.0, 58.0)))
    scalp = fraction(-skull - 6, blur_mm) * fraction(skull + 11, blur_mm)
    tissues = np.stack([np.maximum(fluid, 0), solid - white, white, scalp]).astype(np.float32)
    outer = outer_tissues(points, skull, blur_mm) * (1 - tissues.sum(axis=0)) if is_raw else None
    return Anatomy(points, ventricle, horn, cortex, hull, tissues, blur_mm, outer)


@dataclass(frozen=True)
class Lesions:
    """One person's lesions: ellipsoids in mm with a ragged edge."""

    pathology: Pathology
    centres: Float[np.ndarray, "blob 3"]
    radii: Float[np.ndarray, "blob 3"]
    ragged: _Waves
    band_mm: float  # thickness of the band around the ventricles


def draw_lesions(rng: np.random.Generator, head: Head, pathology: Pathology) -> Lesions:
    """Draw lesions at sites that are typical of the pathology, among random points of the head; none if healthy."""
    if pathology == "healthy":
        none = np.empty((0, 3), np.float32)
        return Lesions(pathology, none, none, _draw_waves(rng, 20.0), band_mm=0.0)
    half = np.array(FIELD_OF_VIEW_MM)[:, None] / 2
    sites = anatomy_on(head, rng.uniform(-half, half, (3, 6000)).astype(np.float32), blur_mm=1.0)
    x, y, z = sites.points
    white = (sites.tissues[2] > 0.9) & (z > -22)
    near, band_mm, length_mm = sites.ventricle_mm, 0.0, 20.0
    if pathology == "multiple sclerosis":
        count, sizes = int(rng.integers(12, 24)), (2.6, 5.5)
        periventricular = white & (near > 1) & (near < 9)
        juxtacortical = white & (near > 9) & (sites.cortex_mm < 7)
        allowed = [periventricular, periventricular, juxtacortical]
    elif pathology == "white matter hyperintensities":
        count, sizes, band_mm = int(rng.integers(6, 18)), (2.6, 4.8), float(rng.uniform(1.2, 3.4))
        allowed, length_mm = [white & (near > 7) & (near < 22)], 14.0
    elif pathology == "glioma":
        count, sizes, length_mm = 1, (9.5, 12.5), 26.0
        allowed = [white & (np.abs(x) > 16) & (z > -8) & (z < 34)]
    elif pathology == "chronic stroke":
        count, sizes, length_mm = int(rng.integers(1, 3)), (9.0, 16.0), 24.0
        allowed = [white & (np.abs(x) > 20) & (np.abs(y) < 55)]
    else:
        count, sizes, length_mm = 1, (12.0, 20.0), 28.0
        allowed = [white & (np.abs(x) > 26) & (np.abs(y) < 42) & (z > -10)]
    chosen = [rng.choice(np.flatnonzero(allowed[n % len(allowed)])) for n in range(count)]
    centres = sites.points[:, chosen].T
    radii = rng.uniform(*sizes, (count, 1)) * rng.uniform(0.8, 1.3, (count, 3))
    ragged = _draw_waves(rng, length_mm, num_waves=20)
    return Lesions(pathology, centres, radii.astype(np.float32), ragged, band_mm)


def lesion_parts(lesions: Lesions, anatomy: Anatomy) -> dict[int, Field]:
    """The fraction of each voxel that is lesion, by code; nothing if the head is healthy."""
    if lesions.pathology == "healthy":
        return {}
    points, blur_mm = anatomy.points, anatomy.blur_mm
    ragged = _evaluate(points, lesions.ragged)
    blobs = zip(lesions.centres.tolist(), lesions.radii.tolist(), strict=True)
    depth = np.max([depth_mm(points, tuple(centre), tuple(radii)) for centre, radii in blobs], axis=0)
    solid = anatomy.tissues[1] + anatomy.tissues[2]
    if lesions.pathology == "glioma":
        depth = depth + 1.8 * ragged
        radius = float(lesions.radii.mean())
        inside, core = fraction(depth, blur_mm), fraction(depth - 0.38 * radius, blur_mm)
        reach = 0.55 * radius + 3 * ragged - 5 * (1 - anatomy.tissues[2])
        return {1: core, 2: fraction(depth + reach, blur_mm) * solid * (1 - inside), 4: inside - core}
    if lesions.pathology in ("ischaemic stroke", "chronic stroke"):
        return {1: fraction(depth + 3.5 * ragged, blur_mm) * solid}
    depth = depth + 0.9 * ragged
    if lesions.band_mm:
        band = lesions.band_mm * (0.6 + 0.6 * ragged + 1.5 * anatomy.horn) - anatomy.ventricle_mm
        depth = np.maximum(depth, band)
    return {1: fraction(depth, blur_mm) * np.minimum(1, 1.15 * anatomy.tissues[2])}


def codes_of(parts: dict[int, Field], threshold: float = 0.5) -> Codes:
    """The code with the largest fraction; 0 if all fractions together are not above the threshold."""
    stack = np.stack(list(parts.values()))
    largest = np.array(list(parts), np.uint8)[stack.argmax(axis=0)]
    return np.where(stack.sum(axis=0) > threshold, largest, 0).astype(np.uint8)


def measure(modality: str, anatomy: Anatomy, lesions: Lesions, rng: np.random.Generator) -> Voxels:
    """Simulate a scan, about 0 to 1: tissues and lesions, bias field, Rician noise."""
    levels = np.array(_TISSUE_SIGNAL[modality], np.float32)
    healthy = np.einsum("t,t...->...", levels, anatomy.tissues)
    if anatomy.outer is not None:
        healthy += np.einsum("t,t...->...", np.array(OUTER_SIGNAL[modality], np.float32), anatomy.outer)
    signal = healthy * (1 + _TEXTURE.get(modality, 0.04) * _evaluate(anatomy.points, _draw_waves(rng, 22.0)))
    contrast = _LESION_SIGNAL[lesions.pathology]
    for code, part in lesion_parts(lesions, anatomy).items():
        level = contrast[code][modality] * (1 + 0.05 * _evaluate(anatomy.points, _draw_waves(rng, 12.0)))
        signal += part * (level - signal)
    bias = np.exp(0.07 * _evaluate(anatomy.points, _draw_waves(rng, 220.0, num_waves=5)))
    real, imaginary = rng.standard_normal((2, *signal.shape), np.float32) * np.float32(_NOISE)
    measured: Voxels = np.hypot(signal * bias + real, imaginary)
    return measured
