"""Change intensities within the brain: voxels that are exactly 0 are background, and every function keeps them 0.

A channel is z-scored within the brain of its whole case. The functions get one channel of one window; mean, standard
deviation and range are those of the brain in the window.
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
"""A raw intensity of 0 is about 2 to 4 standard deviations below the brain's mean; lower voxels are outliers."""


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
    """Gaussian noise of this standard deviation, in standard deviations of the case's brain."""

    std: float
    seed: int


@dataclass(frozen=True, eq=False)
class Adjustment:
    """The changes of one channel's intensities, in this order: contrast between tissues, the scanner's field, its
    resolution, its noise. None: no change."""

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
    """Scale the brain's range to [0, 1], raise it to the power of gamma, and restore mean and deviation.

    Above 1, the contrast of bright tissues grows and that of dark ones falls; below 1 the opposite.
    """
    brain = image != 0
    low, high = image.masked_fill(~brain, torch.inf).amin(), image.masked_fill(~brain, -torch.inf).amax()
    powered = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) ** gamma
    powered = powered * brain
    (mean, std), (new_mean, new_std) = _moments(image, brain), _moments(powered, brain)
    return _within(brain, (powered - new_mean) * (std / new_std.clamp(min=1e-6)) + mean)


def with_contrast(image: Channel, factor: float, shift: float) -> Channel:
    """Scale by a factor about the brain's mean in the window, and shift (in standard deviations of the case)."""
    brain = image != 0
    mean, _ = _moments(image, brain)
    return _within(brain, factor * image + ((1 - factor) * mean + shift))


def with_bias(image: Channel, bias: Bias) -> Channel:
    """Multiply by a smooth field, relative to the darkest voxel: a scanner's field multiplies raw intensities, and raw
    0 is not our 0.

    The position of raw 0 is not known any more, but it is below the mean of the case's brain and at most the window's
    darkest voxel; `LOWEST` bounds outliers.
    """
    brain = image != 0
    controls = torch.from_numpy(bias.controls.astype(np.float32)).to(image.device)
    field = along_axes(controls[None], [quadratic(n, image.device) for n in image.shape])[0]
    field = torch.exp(field * (bias.strength / field.abs().amax().clamp(min=1e-6)))
    low = image.amin().clamp(LOWEST, 0)
    return _within(brain, (image - low) * field + low)


def with_resolution(image: Channel, sigma_voxels: float | None, coarse: Coarse | None) -> Channel:
    """Blur with a Gaussian, then average over coarse voxels and interpolate linearly, only within the brain.

    The result is divided by the same map of the brain's mask, so the background's 0 does not change the rim.
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
    """Add Gaussian noise in the brain; the background was set to 0 after the scan, so it gets none.

    The noise is drawn on the image's device with its own generator: the same in every run on one kind of device, but
    different on a CPU and on a GPU.
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
