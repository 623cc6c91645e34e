"""Synthetic scans of whole heads around real brains, to train a network that finds the brain in any contrast.

A stored case has only the brain of a scan. Around it a head is drawn at random: fluid, skull, scalp, a face, a neck
with a spinal cord, eyes and cavities. The brain keeps its structure, but its intensities go through a random curve, and
every other tissue gets a random intensity, so that the network can rely on no contrast. SynthStrip (Hoopes et al. 2022)
trains on label maps in this way; here the curve replaces the labels of the brain, and formulas those of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from multiseg.types import Index3, Mask, Voxels

SPACING_MM = 6.0
"""Voxel size of the network: a brain's outline is smooth, and is interpolated."""
GRID: Index3 = (32, 40, 40)
"""192 x 240 x 240 mm: a head and the upper neck."""
PERCENTILES = (2.0, 99.5)
KNOTS = (0, 5, 30, 50, 70, 95, 100)
"""The percentiles of a brain's values between which the random curve is linear."""


@dataclass(frozen=True, eq=False)
class BrainShape:
    """A stored brain in voxels of `SPACING_MM`.

    Attributes:
        images: each sequence, 0 outside the brain.
        share: of each voxel, how much of it is brain, from 0 to 1.
    """

    database: str
    case: str
    images: Float[np.ndarray, "modality i j k"]
    share: Float[np.ndarray, "i j k"]


def standard_intensities(image: Voxels) -> Voxels:
    """Intensities from about 0 (air) to 1, whatever the scanner's unit: the network's input.

    The second percentile of all voxels becomes 0 and the 99.5th of those above it 1; beyond, values are clipped.
    """
    low = float(np.percentile(image, PERCENTILES[0]))
    above = image[image > low]
    high = float(np.percentile(above, PERCENTILES[1])) if above.size else low + 1
    scaled: Voxels = np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return scaled


def draw_scan(shape: BrainShape, rng: np.random.Generator) -> tuple[Voxels, Voxels]:
    """A scan of a head with this brain, on `GRID` and as the network sees it, and the share of brain in each voxel.

    Both are a function of the state of `rng` alone.
    """
    values, share = _placed(shape, rng)
    brain = share > 0.5
    signal = _curve(values, brain, rng)
    scan = _head_around(brain, rng) if rng.random() < 0.92 else np.zeros(GRID, np.float32)
    return acquire(share * signal + (1 - share) * scan, share, rng)


def acquire(signal: Voxels, share: Voxels, rng: np.random.Generator) -> tuple[Voxels, Voxels]:
    """A scan of these intensities with a scanner's faults, as the network sees it, and the share of brain in each
    voxel that was scanned."""
    scan = _acquired(signal, rng)
    scanned = _scanned(rng)
    return standard_intensities(np.where(scanned, scan, 0)), share * scanned


def _placed(shape: BrainShape, rng: np.random.Generator) -> tuple[Voxels, Voxels]:
    """One sequence of the brain and its share of each voxel, at random places."""
    points = draw_places(rng)
    points += ((np.array(shape.share.shape) - 1) / 2)[:, None, None, None].astype(np.float32)
    image = shape.images[int(rng.integers(len(shape.images)))].astype(np.float32)
    values: Voxels = ndimage.map_coordinates(image, points, order=1)
    share: Voxels = np.clip(ndimage.map_coordinates(shape.share.astype(np.float32), points, order=1), 0, 1)
    return values, share


def draw_places(rng: np.random.Generator) -> Float[np.ndarray, "axis=3 i j k"]:
    """Where the voxels of `GRID` lie from the middle of a brain that is turned, scaled, bent and moved at random.

    In voxels of `SPACING_MM` of the brain as it was.
    """
    angles = np.deg2rad(rng.uniform(-20, 20, 3))
    scale = rng.uniform(0.85, 1.2) * rng.uniform(0.93, 1.07, 3) * np.where([rng.random() < 0.5, False, False], -1, 1)
    matrix = _rotation(angles) / scale
    middle = (np.array(GRID) - 1) / 2 + rng.uniform((-20, -20, -16), (20, 20, 36)) / SPACING_MM
    points = np.indices(GRID, np.float32) - middle[:, None, None, None].astype(np.float32)
    points = np.einsum("ab,b...->a...", matrix.astype(np.float32), points)
    bend = rng.uniform(0, 5) / SPACING_MM
    places: Float[np.ndarray, "axis=3 i j k"] = points + np.stack([bend * waves(rng, 6) for _ in range(3)])
    return places


def _rotation(angles: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def waves(rng: np.random.Generator, size: int) -> Voxels:
    """A smooth random function on the grid with mean 0: quadratic B-splines with random weights at `size`^3 points."""
    weights = rng.normal(size=(size, size, size)).astype(np.float32)
    i, j, k = (_splines(n, size) for n in GRID)
    smooth: Voxels = np.einsum("ia,jb,kc,abc->ijk", i, j, k, weights, optimize=True)
    return smooth


@lru_cache
def _splines(num_voxels: int, size: int) -> Float[np.ndarray, "voxel point"]:
    """Quadratic B-splines around `size` evenly spaced points of an axis, scaled to a variance of 1 on average."""
    places = np.linspace(-0.5, size - 0.5, num_voxels)[:, None] - np.arange(size)
    distance = np.abs(places)
    values = np.where(distance < 0.5, 0.75 - distance**2, 0.5 * np.clip(1.5 - distance, 0, None) ** 2)
    scaled: Float[np.ndarray, "voxel point"] = (values / np.sqrt((values**2).sum(axis=1).mean())).astype(np.float32)
    return scaled


def _curve(values: Voxels, brain: Mask, rng: np.random.Generator) -> Voxels:
    """The brain's values after a random curve, which need not rise: any contrast between its tissues."""
    inside = values[brain]
    if not inside.size:
        return np.zeros_like(values)
    knots = np.maximum.accumulate(np.percentile(inside, KNOTS) + 1e-4 * np.arange(len(KNOTS)))
    levels = rng.uniform(0.15, 1, len(KNOTS)) if rng.random() < 0.7 else np.sort(rng.uniform(0.15, 1, len(KNOTS)))
    signal: Voxels = np.interp(values, knots, levels).astype(np.float32)
    return signal * rng.uniform(0.4, 1)


def _head_around(brain: Mask, rng: np.random.Generator) -> Voxels:
    """The intensities of a random head around a brain, on the whole grid."""
    outside: Voxels = (ndimage.distance_transform_edt(~brain) * SPACING_MM).astype(np.float32)
    fluid = np.clip(rng.uniform(0, 5) + rng.uniform(0, 2) * waves(rng, 6), 0, 9)
    skull = fluid + np.clip(rng.uniform(3, 10) + rng.uniform(0, 2.5) * waves(rng, 6), 2, 16)
    scalp = skull + np.clip(rng.uniform(3, 14) + rng.uniform(0, 4) * waves(rng, 5), 2, 28)
    head = (outside < scalp) | _face_and_neck(brain, rng)
    scan = np.where(head, _soft_tissues(rng), 0)
    is_air = rng.uniform(0.7, 2.2)
    scan = np.where((waves(rng, 9) > is_air) & (outside > fluid), rng.uniform(0, 0.1), scan)
    bone = rng.uniform(0, 0.15) if rng.random() < 0.6 else rng.uniform(0, 1)
    scan = scan + _band(outside, fluid, skull) * (bone - scan)
    scan = scan + _band(outside, np.zeros_like(fluid), fluid) * (rng.uniform(0, 1) - scan)
    for inside, level in _organs(brain, rng):
        scan = np.where(inside & (outside > fluid), level, scan)
    air: Voxels = np.where(head, scan, rng.uniform(0, 0.04) if rng.random() < 0.5 else 0).astype(np.float32)
    return air


def _band(depth: Voxels, inner: Voxels, outer: Voxels) -> Voxels:
    """The share of each voxel between two surfaces."""
    band: Voxels = np.clip((depth - inner) / SPACING_MM + 0.5, 0, 1) * np.clip((outer - depth) / SPACING_MM + 0.5, 0, 1)
    return band


def _soft_tissues(rng: np.random.Generator) -> Voxels:
    """Patches of several tissues, each with its own intensity."""
    num = int(rng.integers(2, 6))
    fields = np.stack([waves(rng, int(rng.integers(5, 14))) for _ in range(num)])
    levels = rng.uniform(0, 1, num).astype(np.float32)
    tissues: Voxels = levels[fields.argmax(axis=0)] * (1 + rng.uniform(0, 0.15) * waves(rng, 14))
    return tissues


def _landmarks(brain: Mask) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """The centre of a brain and half the sides of its box, in voxels."""
    places = np.argwhere(brain)
    low, high = places.min(axis=0), places.max(axis=0)
    return (low + high) / 2, (high - low + 1) / 2


def _ellipsoid(centre: Float[np.ndarray, " 3"], radii: Float[np.ndarray, " 3"]) -> Bool[np.ndarray, "i j k"]:
    i, j, k = (((np.arange(n) - c) / r) ** 2 for n, c, r in zip(GRID, centre, np.maximum(radii, 0.5), strict=True))
    return np.asarray(i[:, None, None] + j[None, :, None] + k[None, None, :] <= 1)


def _face_and_neck(brain: Mask, rng: np.random.Generator) -> Mask:
    """A box of tissue in front of and below the brain, as ellipsoids: jaws and nose, and a column for the neck."""
    if not brain.any():
        return brain
    centre, half = _landmarks(brain)
    face = centre + half * np.array([0, rng.uniform(0.3, 0.7), rng.uniform(-1.6, -0.9)])
    neck = centre + half * np.array([0, rng.uniform(-0.7, 0.1), -1.5])
    i, j, k = np.ogrid[tuple(slice(n) for n in GRID)]
    width = half[0] * rng.uniform(0.6, 1.05)
    depth = width * rng.uniform(0.9, 1.4)
    column = (((i - neck[0]) / width) ** 2 + ((j - neck[1]) / depth) ** 2 <= 1) & (k < centre[2])
    jaws = _ellipsoid(face, half * np.array([rng.uniform(0.7, 1.1), rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.2)]))
    return np.asarray(column | jaws)


def _organs(brain: Mask, rng: np.random.Generator) -> list[tuple[Mask, float]]:
    """Eyes, the spinal cord in its fluid, ears' cavities and the airway: masks with their intensities."""
    if not brain.any():
        return []
    centre, half = _landmarks(brain)
    organs: list[tuple[Mask, float]] = []
    height, front, radius = rng.uniform(-0.6, -0.2), rng.uniform(0.75, 1.05), rng.uniform(10, 14) / SPACING_MM
    level = float(rng.uniform(0, 1))
    for side in (-0.5, 0.5):
        organs.append((_ellipsoid(centre + half * np.array([side, front, height]), np.full(3, radius)), level))
    canal = centre + half * np.array([0, rng.uniform(-0.4, 0.0), -1.9])
    for narrowest, widest in ((9, 14), (5, 9)):
        width = rng.uniform(narrowest, widest) / SPACING_MM
        organs.append((_ellipsoid(canal, np.array([width, width, half[2] * 1.1])), float(rng.uniform(0, 1))))
    airway = centre + half * np.array([0, rng.uniform(0.1, 0.6), rng.uniform(-2.0, -1.1)])
    organs.append((_ellipsoid(airway, rng.uniform(4, 16, 3) / SPACING_MM), float(rng.uniform(0, 0.1))))
    return organs


def _acquired(scan: Voxels, rng: np.random.Generator) -> Voxels:
    """A scan with blur or thick slices, a bias field, noise and another gamma."""
    if rng.random() < 0.5:
        scan = ndimage.gaussian_filter(scan, rng.uniform(0, 0.8, 3))
    if rng.random() < 0.3:
        scan = ndimage.gaussian_filter1d(scan, rng.uniform(0.6, 1.2), axis=int(rng.integers(3)))
    scan = scan * np.exp(rng.uniform(0, 0.35) * np.clip(waves(rng, 3), -2, 2))
    if rng.random() < 0.8:
        real, imaginary = rng.standard_normal((2, *GRID), np.float32) * np.float32(rng.uniform(0, 0.06))
        scan = np.hypot(scan + real, imaginary)
    acquired: Voxels = (scan ** np.exp(rng.uniform(-0.4, 0.4))).astype(np.float32)
    return acquired


def _scanned(rng: np.random.Generator) -> Mask:
    """The part of the grid that was scanned: some sides are cut off at random."""
    scanned = np.ones(GRID, bool)
    for axis in range(3):
        for is_first in (True, False):
            if rng.random() < 0.12:
                width = int(rng.integers(1, GRID[axis] // 5))
                part = slice(0, width) if is_first else slice(-width, None)
                np.moveaxis(scanned, axis, 0)[part] = False
    return scanned
