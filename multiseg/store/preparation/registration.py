"""Registration of one image to another: rigid from the positions in their headers, or affine from their centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.similarity import Likeness, coarse
from multiseg.types import Affine, Voxels

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

LEVELS_MM = (8.0, 4.0, 2.0)
"""The voxel sizes of the search, from coarse to fine; never finer than the images."""
NUM_BINS = 32
NUM_STEPS = 200
LEAST_SAMPLES = 20_000
SEED = 1
AFFINE_STEP = 0.05
"""The first step of a search over 12 parameters, in voxels: at a quarter of a voxel it diverged on real brains."""
AIR_MM = 60.0
"""The room around a brain that is registered to another."""


class RegistrationError(Exception):
    """The search could not start, such as when the images hardly overlap."""


@dataclass(frozen=True, eq=False)
class Move:
    """A move of an image in space, and the similarity to the reference before and after it."""

    matrix: Affine
    before: float
    after: float

    @property
    def degrees(self) -> float:
        """The angle of the rotation of a rigid move."""
        cosine = (np.trace(self.matrix[:3, :3]) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    def mm(self, point: Float[np.ndarray, " 3"]) -> float:
        """The distance that a point moves."""
        return float(np.linalg.norm(self.matrix[:3, :3] @ point + self.matrix[:3, 3] - point))


def register_rigid(
    fixed: Voxels, fixed_grid: Grid, moving: Num[np.ndarray, "moving_i moving_j moving_k"], moving_grid: Grid
) -> Move:
    """Register `moving` to `fixed`.

    Regular step gradient descent maximises Mattes mutual information (Mattes 2003, doi:10.1109/TMI.2003.809072) over
    three angles about the centre of the fixed box and three shifts, on three levels of smoothed voxels with seeded
    samples. SimpleITK is set to one thread in this process, so that the same images give the same move, bit for bit.
    The similarities are `normalised_mutual_information`, which the search does not use.

    Raises:
        RegistrationError: the search cannot start at the positions in the headers.
    """
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    _use_one_thread()
    transform = sitk.Euler3DTransform()
    transform.SetCenter(fixed_grid.centre.tolist())
    for level_mm in LEVELS_MM:
        transform = _optimise(_image(fixed, fixed_grid, level_mm), _image(moving, moving_grid, level_mm), transform)
    return _move(transform, fixed, fixed_grid, moving, moving_grid)


def register_affine(
    fixed: Voxels, fixed_grid: Grid, moving: Num[np.ndarray, "moving_i moving_j moving_k"], moving_grid: Grid
) -> Move:
    """Register the brain `moving` of one person to the brain `fixed` of another, both 0 outside of the brain.

    As `register_rigid`, but the search starts where the centres of mass of both brains meet, since two people's headers
    say nothing of each other. A rigid transform is found on the coarsest level, then 12 parameters on all levels.

    Raises:
        RegistrationError: the search cannot start, or one brain is empty.
    """
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    _use_one_thread()
    centre = _centre_mm(fixed, fixed_grid)
    start = sitk.Euler3DTransform()
    start.SetCenter(centre.tolist())
    start.SetTranslation((_centre_mm(moving, moving_grid) - centre).tolist())
    # Points outside of the moving image do not count, so without air around it a search would flee the brain.
    around = _with_margin(moving_grid, AIR_MM)
    air = resample(moving, moving_grid, around)
    pyramid = [(_image(fixed, fixed_grid, mm), _image(air, around, mm)) for mm in LEVELS_MM]
    rigid = _optimise(*pyramid[0], start)
    transform = sitk.AffineTransform(3)
    transform.SetCenter(rigid.GetCenter())
    transform.SetTranslation(rigid.GetTranslation())
    transform.SetMatrix(rigid.GetMatrix())
    for level in pyramid:
        transform = _optimise(*level, transform, AFFINE_STEP)
    return _move(transform, fixed, fixed_grid, moving, moving_grid)


def _with_margin(grid: Grid, margin_mm: float) -> Grid:
    """The grid with so much more room on every side."""
    i, j, k = (round(margin_mm / mm) for mm in grid.spacing_mm)
    x, y, z = grid.shape
    return grid.cropped((-i, -j, -k), (x + 2 * i, y + 2 * j, z + 2 * k))


def _use_one_thread() -> None:
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    # The metric ignores other settings, and several threads add up in varying order.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _centre_mm(voxels: Num[np.ndarray, "i j k"], grid: Grid) -> Float[np.ndarray, " 3"]:
    """The centre of the voxels that are not 0."""
    inside = np.argwhere(voxels)
    if not len(inside):
        raise RegistrationError("an image is empty")
    centre: Float[np.ndarray, " 3"] = grid.affine[:3, :3] @ inside.mean(axis=0) + grid.affine[:3, 3]
    return centre


def _move(
    transform: Any,
    fixed: Voxels,
    fixed_grid: Grid,
    moving: Num[np.ndarray, "moving_i moving_j moving_k"],
    moving_grid: Grid,
) -> Move:
    """The move of an image by the inverse of SimpleITK's transform, which maps points of `fixed` to `moving`."""
    to_moving = np.eye(4)
    to_moving[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    to_moving[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix = np.linalg.inv(to_moving)
    likeness = Likeness(fixed, fixed_grid)
    moved = Grid(matrix @ moving_grid.affine, moving_grid.shape)
    return Move(matrix, likeness.of(moving, moving_grid), likeness.of(moving, moved))


def _image(voxels: Num[np.ndarray, "i j k"], grid: Grid, level_mm: float) -> sitk.Image:
    """The image on coarse voxels for SimpleITK, in our coordinates (RAS+ mm)."""
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    level = coarse(grid, level_mm)
    image = sitk.GetImageFromArray(resample(voxels, grid, level).T)
    image.SetSpacing(level.spacing_mm)
    image.SetOrigin(level.affine[:3, 3].tolist())
    image.SetDirection((level.affine[:3, :3] / np.asarray(level.spacing_mm)).ravel().tolist())
    return image


def _optimise(fixed: sitk.Image, moving: sitk.Image, transform: Any, step: float = 1.0) -> Any:
    """The transform of the same kind that is better, from this one; the first step has `step` voxels."""
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(NUM_BINS)
    share = min(1.0, LEAST_SAMPLES / fixed.GetNumberOfPixels())
    if share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    step_mm = step * min(fixed.GetSpacing())
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step_mm, minStep=step_mm / 200, numberOfIterations=NUM_STEPS, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    kind = type(transform)
    method.SetInitialTransform(kind(transform), inPlace=True)
    try:
        return kind(method.Execute(fixed, moving))
    except RuntimeError as error:
        # The last line is the reason; the others are positions in SimpleITK's source.
        raise RegistrationError(str(error).strip().splitlines()[-1].strip()) from error
