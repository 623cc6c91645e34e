"""Changing intensities within the brain: voxels that are exactly 0 are background, and every function keeps them 0.

A channel is z-scored within the brain of its whole case. The functions see one channel of one window, and what
they need to know of it (mean, standard deviation, range) is that of the window's brain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multiseg.loaders.separable import along_axes, coarsening, gaussian, quadratic

Channel = Float[Tensor, "i j k"]
LOWEST = -4.0
"""Raw intensity 0 lies about 2 to 4 standard deviations below the brain's mean; lower voxels are outliers."""


@dataclass(frozen=True, eq=False)
class Bias:
    """A smooth multiplicative field: exp of a polynomial of degree 2 along each axis, at most `strength`."""

    strength: float
    controls: Float[np.ndarray, "3 3 3"]


@dataclass(frozen=True)
class Coarse:
    """Voxels `factor` times as large, along the axes that are True."""

    factor: float
    axes: tuple[bool, bool, bool]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of this standard deviation, in those of the case's brain."""

    std: float
    seed: int


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What happens to one channel's intensities, in this order: contrast between tissues, then the scanner's
    field, then its resolution, then its noise. None: left out."""

    gamma: float | None = None
    contrast: float | None = None
    brightness: float | None = None
    bias: Bias | None = None
    blur_sigma_voxels: float | None = None
    coarse: Coarse | None = None
    noise: Noise | None = None

    @property
    def is_none(self) -> bool:
        return all(value is None for value in vars(self).values())


def adjust(image: Channel, adjustment: Adjustment) -> Channel:
    """The channel with all of an adjustment's changes."""
    if adjustment.gamma is not None:
        image = with_gamma(image, adjustment.gamma)
    if adjustment.contrast is not None or adjustment.brightness is not None:
        factor = 1.0 if adjustment.contrast is None else adjustment.contrast
        image = with_contrast(image, factor, adjustment.brightness or 0.0)
    if adjustment.bias is not None:
        image = with_bias(image, adjustment.bias)
    if adjustment.blur_sigma_voxels is not None or adjustment.coarse is not None:
        image = with_resolution(image, adjustment.blur_sigma_voxels, adjustment.coarse)
    return image if adjustment.noise is None else with_noise(image, adjustment.noise)


def with_gamma(image: Channel, gamma: float) -> Channel:
    """The brain's range brought to [0, 1], to the power of gamma, and back to the mean and deviation from before.

    Above 1, bright tissues move apart and dark ones together; below 1 the other way round.
    """
    brain = image != 0
    low, high = image.masked_fill(~brain, torch.inf).amin(), image.masked_fill(~brain, -torch.inf).amax()
    powered = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) ** gamma
    powered = powered * brain
    (mean, std), (new_mean, new_std) = _moments(image, brain), _moments(powered, brain)
    return _within(brain, (powered - new_mean) * (std / new_std.clamp(min=1e-6)) + mean)


def with_contrast(image: Channel, factor: float, shift: float) -> Channel:
    """Spread by a factor about the brain's mean in the window, and shifted (in standard deviations of the case)."""
    brain = image != 0
    mean, _ = _moments(image, brain)
    return _within(brain, factor * image + ((1 - factor) * mean + shift))


def with_bias(image: Channel, bias: Bias) -> Channel:
    """Times a smooth field, counted from the darkest voxel: a scanner's field multiplies raw intensities, and raw 0
    is not our 0.

    Where raw 0 lies is no longer known, but it is below the mean of the case's brain and no higher than the window's
    darkest voxel; `LOWEST` bounds outliers.
    """
    brain = image != 0
    controls = torch.from_numpy(bias.controls.astype(np.float32)).to(image.device)
    field = along_axes(controls[None], [quadratic(n, image.device) for n in image.shape])[0]
    field = torch.exp(field * (bias.strength / field.abs().amax().clamp(min=1e-6)))
    low = image.amin().clamp(LOWEST, 0)
    return _within(brain, (image - low) * field + low)


def with_resolution(image: Channel, sigma_voxels: float | None, coarse: Coarse | None) -> Channel:
    """Blurred by a Gaussian, then averaged over coarse voxels and read linearly between them, within the brain alone.

    Both are divided by what they make of the brain's mask, so the background's 0 does not darken or brighten its rim.
    """
    brain = image != 0
    matrices: list[Tensor | None] = []
    for axis, size in enumerate(image.shape):
        blur = None if sigma_voxels is None else gaussian(size, sigma_voxels, image.device)
        if coarse is not None and coarse.axes[axis]:
            rough = coarsening(size, coarse.factor, image.device)
            matrices.append(rough if blur is None else rough @ blur)
        else:
            matrices.append(blur)
    smoothed, share = along_axes(torch.stack([image, brain.to(image.dtype)]), matrices)
    return _within(brain, smoothed / share)


def with_noise(image: Channel, noise: Noise) -> Channel:
    """Plus Gaussian noise in the brain; the background was cut out and set to 0 after the scan, so it gets none.

    The noise is drawn on the image's device from a generator of its own: the same on every run of one kind of
    device, another on a CPU than on a GPU.
    """
    generator = torch.Generator(image.device).manual_seed(noise.seed)
    drawn = torch.empty_like(image).normal_(std=noise.std, generator=generator)
    return _within(image != 0, image + drawn)


def _within(brain: Bool[Tensor, "i j k"], values: Channel) -> Channel:
    return torch.where(brain, values, 0)


def _moments(image: Channel, brain: Bool[Tensor, "i j k"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and standard deviation over the brain of an image that is 0 outside it."""
    num = brain.sum().clamp(min=1)
    mean = image.sum() / num
    return mean, ((((image - mean) * brain) ** 2).sum() / num).sqrt()
