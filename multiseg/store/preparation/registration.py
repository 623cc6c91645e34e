"""Rigid registration of one image onto another, beginning where their headers put them."""

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
"""Voxels that the images are looked at in, from coarse to fine; never finer than their own."""
NUM_BINS = 32
NUM_STEPS = 200
LEAST_SAMPLES = 20_000
SEED = 1


class RegistrationError(Exception):
    """The search could not even begin, as where the two images hardly overlap."""


@dataclass(frozen=True, eq=False)
class Move:
    """A rigid move of an image through the world, and the similarity to the reference before and after it."""

    matrix: Affine
    before: float
    after: float

    @property
    def degrees(self) -> float:
        """The angle of its rotation."""
        cosine = (np.trace(self.matrix[:3, :3]) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    def mm(self, at: Float[np.ndarray, " 3"]) -> float:
        """How far it takes a place."""
        return float(np.linalg.norm(self.matrix[:3, :3] @ at + self.matrix[:3, 3] - at))


def register_rigid(
    fixed: Voxels, fixed_grid: Grid, moving: Num[np.ndarray, "moving_i moving_j moving_k"], moving_grid: Grid
) -> Move:
    """The move that takes `moving` onto `fixed`.

    Mattes mutual information (Mattes 2003, doi:10.1109/TMI.2003.809072) is climbed by a regular step
    gradient descent over three angles about the fixed box's centre and three shifts, on three levels of
    smoothed voxels with seeded samples. SimpleITK is put on one thread in this process, so that the same
    images give the same move, bit for bit. The similarities are `normalised_mutual_information`, which had
    no part in the search.

    Raises:
        RegistrationError: no move can be searched for from where the headers put them.
    """
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    # The metric heeds no other setting, and its threads add up in any order.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(fixed_grid.centre.tolist())
    for level_mm in LEVELS_MM:
        transform = _climb(_image(fixed, fixed_grid, level_mm), _image(moving, moving_grid, level_mm), transform)
    to_moving = np.eye(4)
    to_moving[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    to_moving[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix = np.linalg.inv(to_moving)
    likeness = Likeness(fixed, fixed_grid)
    moved = Grid(matrix @ moving_grid.affine, moving_grid.shape)
    return Move(matrix, likeness.of(moving, moving_grid), likeness.of(moving, moved))


def _image(voxels: Num[np.ndarray, "i j k"], grid: Grid, level_mm: float) -> sitk.Image:
    """SimpleITK's image on coarse voxels; its world is ours (RAS+ mm)."""
    import SimpleITK as sitk  # noqa: N813 (as its manual has it)

    level = coarse(grid, level_mm)
    image = sitk.GetImageFromArray(resample(voxels, grid, level).T)
    image.SetSpacing(level.spacing_mm)
    image.SetOrigin(level.affine[:3, 3].tolist())
    image.SetDirection((level.affine[:3, :3] / np.asarray(level.spacing_mm)).ravel().tolist())
    return image


def _climb(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Euler3DTransform) -> sitk.Euler3DTransform:
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
        # Its last line is the reason; before it come places in SimpleITK's own files.
        raise RegistrationError(str(error).strip().splitlines()[-1].strip()) from error
