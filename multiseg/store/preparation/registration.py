"""Rigid registration of one image to another, starting at the positions in their headers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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


class RegistrationError(Exception):
    """The search could not start, such as when the images hardly overlap."""


@dataclass(frozen=True, eq=False)
class Move:
    """A rigid move of an image in space, and the similarity to the reference before and after it."""

    matrix: Affine
    before: float
    after: float

    @property
    def degrees(self) -> float:
        """The angle of the rotation."""
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

    # The metric ignores other settings, and several threads add up in varying order.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(fixed_grid.centre.tolist())
    for level_mm in LEVELS_MM:
        transform = _optimise(_image(fixed, fixed_grid, level_mm), _image(moving, moving_grid, level_mm), transform)
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


def _optimise(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Euler3DTransform) -> sitk.Euler3DTransform:
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(NUM_BINS)
    share = min(1.0, LEAST_SAMPLES / fixed.GetNumberOfPixels())
    if share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    step_mm = min(fixed.GetSpacing())
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step_mm, minStep=step_mm / 200, numberOfIterations=NUM_STEPS, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(sitk.Euler3DTransform(transform), inPlace=True)
    try:
        return sitk.Euler3DTransform(method.Execute(fixed, moving))
    except RuntimeError as error:
        # The last line is the reason; the others are positions in SimpleITK's source.
        raise RegistrationError(str(error).strip().splitlines()[-1].strip()) from error
