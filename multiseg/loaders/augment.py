"""Augmentation of patches on the batch's device; every draw is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from multiseg.errors import UsageError
from multiseg.loaders.batches import Batch, Donor
from multiseg.loaders.intensity_adjustment import Adjustment, Bias, Coarse, Noise, adjust
from multiseg.loaders.mirror import exchanged
from multiseg.loaders.spatial import Elastic, Movement, move, rotation
from multiseg.loaders.transform import Transform, transform_named, transformed

AXES = ("i", "j", "k")
STREAM = 0xA06
"""Part of the generator's seed, so that an augmentation shares no random numbers with the draw of its patch."""
Range = tuple[float, float]
LOWEST = {
    "scaling": 0.1,
    "gamma": 0.1,
    "contrast": 0.0,
    "brightness": -math.inf,
    "bias_strength": 0.0,
    "blur_sigma_voxels": 0.1,
    "low_resolution": 1.0,
    "noise_std": 0.0,
}
"""The lowest value of each range."""
TRANSFORMS = {
    "rotate90_probability": ("rotate90_plane",),
    "flip_probability": ("flip_axes",),
    "affine_probability": ("rotation_degrees", "scaling", "translation_voxels"),
    "elastic_probability": ("elastic_voxels", "elastic_spacing_voxels"),
    "gamma_probability": ("gamma",),
    "contrast_probability": ("contrast",),
    "brightness_probability": ("brightness",),
    "bias_probability": ("bias_strength",),
    "blur_probability": ("blur_sigma_voxels",),
    "low_resolution_probability": ("low_resolution",),
    "noise_probability": ("noise_std",),
}
"""The probability of each transform, and the numbers that have an effect only if it is above 0."""


@dataclass(frozen=True)
class AugmentOptions:
    """Which transforms are applied to training patches, how often, and how strongly.

    A probability of 0 switches a transform off. Movements are drawn once per patch, intensities for each of its
    sequences. Values are drawn uniformly from their ranges, scaling and gamma uniformly in their logarithm. Axes are
    voxel axes in RAS+: i from left to right, j from back to front, k upwards. Angles are on the voxel grid, also if
    voxels are not cubes.

    Attributes:
        preset: the name of the preset that these numbers started from; it has no effect.
        seed: 0 or more; None, the default, takes the seed of the training, or 0 without one.
        rotate90_probability: of 1 to 3 quarter turns in `rotate90_plane`. A window that is not square in the
            plane keeps its shape: what turns out of it is lost, and the rest is absent.
        flip_probability: for each of `flip_axes` separately.
        affine_probability: of rotation, scaling and translation together.
        rotation_degrees: largest angle in both directions, for every axis, or three numbers for i, j and k.
        translation_voxels: largest shift in both directions along every axis.
        elastic_voxels: largest displacement along an axis; at most 0.4 of `elastic_spacing_voxels`, the spacing of
            the control points, since more could fold space (Choi and Lee 2000).
        gamma: exponent on the brain's range in the window; mean and deviation stay.
        contrast: factor about the brain's mean in the window.
        brightness: shift in standard deviations of the case's brain.
        bias_strength: largest logarithm of the field.
        low_resolution: factor on the voxel size, along i, j, k or all three, with equal probability.
        noise_std: in standard deviations of the case's brain.
        own: your own augmentation as module:name, after all others; see `multiseg.loaders.transform`.

    Raises:
        UsageError: a number is out of its range; the message names it.
    """

    preset: str = "none"
    seed: int | None = None
    rotate90_probability: float = 0.0
    rotate90_plane: tuple[str, str] = ("i", "k")
    flip_probability: float = 0.0
    flip_axes: tuple[str, ...] = ("i",)
    affine_probability: float = 0.0
    rotation_degrees: float | tuple[float, float, float] = 15.0
    scaling: Range = (0.8, 1.25)
    translation_voxels: float = 0.0
    elastic_probability: float = 0.0
    elastic_voxels: float = 4.0
    elastic_spacing_voxels: float = 16.0
    gamma_probability: float = 0.0
    gamma: Range = (0.7, 1.4)
    contrast_probability: float = 0.0
    contrast: Range = (0.75, 1.33)
    brightness_probability: float = 0.0
    brightness: Range = (-0.3, 0.3)
    bias_probability: float = 0.0
    bias_strength: Range = (0.05, 0.3)
    blur_probability: float = 0.0
    blur_sigma_voxels: Range = (0.5, 1.0)
    low_resolution_probability: float = 0.0
    low_resolution: Range = (1.5, 3.0)
    noise_probability: float = 0.0
    noise_std: Range = (0.02, 0.2)
    own: str = ""

    def __post_init__(self) -> None:
        for name in TRANSFORMS:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augment.{name} is {getattr(self, name)}: give a number between 0 and 1.")
        for name, lowest in LOWEST.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high < math.inf:
                raise UsageError(
                    f"augment.{name} is {[low, high]}: give the lowest and the highest value, {lowest} or more."
                )
        axes = (*self.flip_axes, *self.rotate90_plane)
        if set(axes) - set(AXES) or len(set(self.rotate90_plane)) != 2:
            raise UsageError(f"augment names the axes {', '.join(axes)}: the axes are i, j, k, and a plane has two.")
        if not 0 <= self.elastic_voxels <= 0.4 * self.elastic_spacing_voxels:
            raise UsageError(
                f"augment.elastic_voxels is {self.elastic_voxels}, but may be at most 0.4 of elastic_spacing_voxels "
                f"({self.elastic_spacing_voxels}), or space could fold: lower it or raise elastic_spacing_voxels."
            )
        if (self.seed or 0) < 0 or not self.translation_voxels >= 0 or not self.elastic_spacing_voxels >= 1:
            raise UsageError(
                f"augment has seed {self.seed}, translation_voxels {self.translation_voxels} and "
                f"elastic_spacing_voxels {self.elastic_spacing_voxels}: give at least 0, 0 and 1."
            )

    @property
    def changes_something(self) -> bool:
        """Whether any transform is switched on."""
        return any(getattr(self, name) for name in TRANSFORMS)


def standard() -> AugmentOptions:
    """Every transform but elastic deformation, similar to nnU-Net (Isensee 2021), with our numbers.

    Only left and right are flipped, since a brain is nearly symmetric only in that direction; labels of one side are
    exchanged with those of the other. About every fourth patch is resampled, and each intensity transform is applied
    to every seventh to tenth sequence.
    """
    return AugmentOptions(
        preset="standard",
        flip_probability=0.5,
        affine_probability=0.25,
        gamma_probability=0.15,
        contrast_probability=0.15,
        brightness_probability=0.15,
        bias_probability=0.15,
        blur_probability=0.1,
        low_resolution_probability=0.1,
        noise_probability=0.15,
    )


def published() -> AugmentOptions:
    """The augmentation of Xu et al. 2024: with probability 0.1 one to three quarter turns in the plane of i and k.

    Their windows are cubes, which a quarter turn maps onto themselves. Their loader would change the shape of a window
    that is not square in the plane; here it stays, and what is not covered is absent (image 0, label 255).
    """
    return AugmentOptions(preset="published", rotate90_probability=0.1)


PRESETS: dict[str, AugmentOptions] = {"none": AugmentOptions(), "published": published(), "standard": standard()}


def preset(name: str) -> AugmentOptions:
    """The options of a name.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"augment.preset is {name!r}: give one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def augmenter(options: AugmentOptions, transform: Transform | None = None) -> Callable[[Batch], Batch]:
    """A function that augments a batch: by the options' transforms, then by `transform` or the one that they name.

    Raises:
        UsageError: the one that they name cannot be imported or called.
    """
    own = transform or (transform_named(options.own) if options.own else None)
    if own is None:
        return partial(augment, options=options)
    return lambda batch: transformed(augment(batch, options), own, options.seed or 0)


def augment(batch: Batch, options: AugmentOptions) -> Batch:
    """A new batch with every patch augmented, images in float32.

    The result of a patch depends only on the options, its (epoch, index) in `batch.draws` and itself, not on its
    position or its neighbours. Sequences that are not present stay 0. In a mirrored patch, left and right structures
    are exchanged (`batch.mirrored`). The global random generators of torch and numpy are not used.

    Raises:
        UsageError: a patch is mirrored, and a structure of one side has no counterpart.
    """
    if not options.changes_something:
        return replace(batch, images=batch.images.float())
    images, target = batch.images.to(torch.float32, copy=True), batch.target.clone()
    annotated = batch.annotated.clone()
    with torch.no_grad():
        for n, (present, (epoch, index)) in enumerate(zip(batch.present.tolist(), batch.draws.tolist(), strict=True)):
            movement, adjustments = draw(options, epoch, index, len(present))
            channels = [channel for channel, is_present in enumerate(present) if is_present]
            if movement is not None:
                images[n, channels], target[n] = move(images[n, channels], target[n], movement)
                if movement.is_mirror:
                    target[n], annotated[n] = exchanged(target[n], annotated[n], batch.mirrored)
            for channel in channels:
                if not adjustments[channel].is_none:
                    images[n, channel] = adjust(images[n, channel], adjustments[channel])
    return replace(batch, images=images, target=target, annotated=annotated, donor=_augmented_donor(batch, options))


def _augmented_donor(batch: Batch, options: AugmentOptions) -> Donor | None:
    """The donor of a batch, moved and adjusted like the patches: what is drawn depends only on their (epoch, index)."""
    if batch.donor is None:
        return None
    lesion = batch.donor.lesion.to(torch.uint8)
    moved = augment(replace(batch, images=batch.donor.images, target=lesion, mirrored=(), donor=None), options)
    return Donor(moved.images, moved.target == 1)


def draw(
    options: AugmentOptions, epoch: int, index: int, num_channels: int
) -> tuple[Movement | None, list[Adjustment]]:
    """The movement of a patch (None if it does not move), and the adjustment of each channel.

    The number of random numbers does not depend on the options, so that a changed option changes only its own
    transform.
    """
    rng = np.random.default_rng((options.seed or 0, epoch, index, STREAM))
    movement = _draw_movement(options, rng)
    return movement, [_draw_adjustment(options, rng) for _ in range(num_channels)]


def _draw_movement(options: AugmentOptions, rng: np.random.Generator) -> Movement | None:
    turn_chance, turns, affine_chance, elastic_chance = rng.random(4).tolist()
    chances, numbers, seed = rng.random(3).tolist(), rng.random(7), int(rng.integers(2**62))
    quarter_turns = 1 + int(3 * turns) if turn_chance < options.rotate90_probability else 0
    i, j, k = (
        axis in options.flip_axes and chance < options.flip_probability
        for axis, chance in zip(AXES, chances, strict=True)
    )
    is_affine, is_elastic = affine_chance < options.affine_probability, elastic_chance < options.elastic_probability
    if not (quarter_turns or i or j or k or is_affine or is_elastic):
        return None
    return Movement(
        flips=(i, j, k),
        quarter_turns=quarter_turns,
        plane=(AXES.index(options.rotate90_plane[0]), AXES.index(options.rotate90_plane[1])),
        affine=_affine(options, numbers) if is_affine else None,
        elastic=Elastic(options.elastic_voxels, options.elastic_spacing_voxels, seed) if is_elastic else None,
    )


def _affine(options: AugmentOptions, numbers: Float[np.ndarray, "7"]) -> Float[np.ndarray, "3 4"]:
    """The map from positions in the result to positions before it, hence the division by the scaling."""
    limits = np.broadcast_to(np.asarray(options.rotation_degrees, dtype=np.float64), 3)
    a, b, c = (2 * numbers[:3] - 1) * limits
    turned = rotation((float(a), float(b), float(c))) / _geometric(options.scaling, float(numbers[3]))
    return np.column_stack([turned, (2 * numbers[4:] - 1) * options.translation_voxels])


def _draw_adjustment(options: AugmentOptions, rng: np.random.Generator) -> Adjustment:
    distributions = (
        (options.gamma_probability, options.gamma, _geometric),
        (options.contrast_probability, options.contrast, _linear),
        (options.brightness_probability, options.brightness, _linear),
        (options.bias_probability, options.bias_strength, _linear),
        (options.blur_probability, options.blur_sigma_voxels, _linear),
        (options.low_resolution_probability, options.low_resolution, _linear),
        (options.noise_probability, options.noise_std, _linear),
    )
    chances, numbers = rng.random((2, len(distributions))).tolist()
    controls, axis, seed = rng.standard_normal((3, 3, 3)), int(rng.integers(4)), int(rng.integers(2**62))
    gamma, contrast, brightness, strength, sigma, factor, std = (
        scale(limits, number) if chance < probability else None
        for (probability, limits, scale), chance, number in zip(distributions, chances, numbers, strict=True)
    )
    return Adjustment(
        gamma=gamma,
        contrast=contrast,
        brightness=brightness,
        bias=None if strength is None else Bias(strength, controls),
        blur_sigma_voxels=sigma,
        coarse=None if factor is None else Coarse(factor, (axis in (0, 3), axis in (1, 3), axis in (2, 3))),
        noise=None if std is None else Noise(std, seed),
    )


def _linear(limits: Range, number: float) -> float:
    low, high = limits
    return low + number * (high - low)


def _geometric(limits: Range, number: float) -> float:
    """Uniform in the logarithm: as often halved as doubled."""
    low, high = limits
    return low * math.exp(number * math.log(high / low))
