"""Move a patch: quarter turns and flips copy voxels, everything else is one resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere in torch code)
from jaxtyping import Float, UInt8
from torch import Tensor

from multiseg.labels import IGNORE
from multiseg.loaders.separable import num_controls, smooth_field
from multiseg.types import Index3


@dataclass(frozen=True)
class Elastic:
    """A smooth displacement from cubic B-splines.

    Attributes:
        voxels: largest displacement along any axis.
        spacing_voxels: between the controls.
        seed: of the controls, uniform in [-voxels, voxels].
    """

    voxels: float
    spacing_voxels: float
    seed: int


@dataclass(frozen=True, eq=False)
class Movement:
    """The movement of one patch, in this order.

    Attributes:
        flips: which of i, j, k are flipped.
        quarter_turns: 0 to 3, in `plane`, as torch.rot90 counts them.
        affine: from a voxel of the result to one before it, both relative to the window's centre; the last column
            is the shift. None: no interpolation is needed.
    """

    flips: tuple[bool, bool, bool] = (False, False, False)
    quarter_turns: int = 0
    plane: tuple[int, int] = (0, 2)
    affine: Float[np.ndarray, "3 4"] | None = None
    elastic: Elastic | None = None

    @property
    def is_mirror(self) -> bool:
        """Whether the result is a mirror image, in which a left structure looks like a right one.

        One flip mirrors, along any axis; two flips are half a turn, in which left stays left.
        """
        return sum(self.flips) % 2 == 1


def rotation(degrees: tuple[float, float, float]) -> Float[np.ndarray, "3 3"]:
    """The rotation matrix about i, then j, then k."""
    matrix = np.eye(3)
    for axis, angle in enumerate(degrees):
        a, b = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(math.radians(angle))
        turn[a, b], turn[b, a] = -math.sin(math.radians(angle)), math.sin(math.radians(angle))
        matrix = turn @ matrix
    return matrix


def permutation(movement: Movement) -> Float[np.ndarray, "3 3"]:
    """Flips and quarter turns as the matrix from positions in the result to positions before."""
    a, b = movement.plane
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = 0
    turn[a, b], turn[b, a] = 1, -1
    flip = np.diag([-1.0 if flipped else 1.0 for flipped in movement.flips])
    matrix: Float[np.ndarray, "3 3"] = flip @ np.linalg.matrix_power(turn, movement.quarter_turns)
    return matrix


def move(
    images: Float[Tensor, "channel i j k"], target: UInt8[Tensor, "i j k"], movement: Movement
) -> tuple[Float[Tensor, "channel i j k"], UInt8[Tensor, "i j k"]]:
    """The moved images and target. What comes in from outside is 0, its label 255.

    Flips and quarter turns alone copy voxels. Otherwise images are interpolated linearly between voxels of the brain
    only (see `interpolate`), and labels are those of the nearest voxel.
    """
    if movement.affine is None and movement.elastic is None:
        return _permuted(images, movement, 0), _permuted(target[None], movement, IGNORE)[0]
    grid = _grid(movement, (images.shape[1], images.shape[2], images.shape[3]), images.device)
    return interpolate(images, grid), nearest(target, grid)


def _permuted(volume: Tensor, movement: Movement, fill: int) -> Tensor:
    """Flip and turn by copying. A window that is not square in the plane is cropped and filled about its centre."""
    dims = [axis + 1 for axis, flipped in enumerate(movement.flips) if flipped]
    size = volume.shape[1:]
    volume = volume.flip(dims) if dims else volume
    if not movement.quarter_turns:
        return volume
    a, b = movement.plane
    volume = torch.rot90(volume, movement.quarter_turns, (a + 1, b + 1))
    missing = [before - now for before, now in zip(size, volume.shape[1:], strict=True)]
    sides = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]  # torch counts from the last axis
    return F.pad(volume, sides, value=fill) if any(missing) else volume


def _grid(movement: Movement, size: Index3, device: torch.device) -> Float[Tensor, "1 i j k 3"]:
    """The source of each voxel of the result, in units of grid_sample: -1 and 1 are the window's outer faces."""
    affine = np.eye(3, 4) if movement.affine is None else movement.affine
    places = permutation(movement) @ affine
    along = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in size]
    grid = torch.empty((*size, 3), device=device)
    for axis, (to_i, to_j, to_k, shift) in enumerate(places.tolist()):
        scale = 2 / size[axis]
        line_i = (scale * to_i) * along[0] + scale * shift
        plane = line_i[:, None] + (scale * to_j) * along[1]
        torch.add(plane[:, :, None], (scale * to_k) * along[2], out=grid[..., 2 - axis])
    if movement.elastic is not None:
        # Displace first, then apply the affine map, which cannot fold space.
        linear = torch.from_numpy(places[:, :3].astype(np.float32)).to(device)
        field = torch.einsum("ab,bijk->aijk", linear, _displacement(movement.elastic, size, device))
        for axis in range(3):
            grid[..., 2 - axis].add_(field[axis], alpha=2 / size[axis])
    return grid[None]


def _displacement(elastic: Elastic, size: Index3, device: torch.device) -> Float[Tensor, "3 i j k"]:
    counts = [num_controls(n, elastic.spacing_voxels) for n in size]
    drawn = np.random.default_rng(elastic.seed).uniform(-elastic.voxels, elastic.voxels, (3, *counts))
    return smooth_field(torch.from_numpy(drawn.astype(np.float32)).to(device), size, elastic.spacing_voxels)


def interpolate(
    images: Float[Tensor, "channel i j k"], grid: Float[Tensor, "1 i j k 3"]
) -> Float[Tensor, "channel i j k"]:
    """Linear interpolation without the background: the weighted mean of those of the eight voxels in the brain.

    Outside the brain images are 0, which is the mean intensity inside it. Plain interpolation would produce a rim of
    wrong values around the brain. So a voxel is background if the brain's share of the eight voxels is below a half,
    and otherwise their sum is divided by this share. The brain is where any channel is not 0; outside the window is
    background.
    """
    brain = (images != 0).any(0, keepdim=True).to(images.dtype)
    sampled = F.grid_sample(torch.cat([images, brain])[None], grid, align_corners=False)[0]
    share = sampled[-1]
    return torch.where(share >= 0.5, sampled[:-1] / share.clamp(min=0.5), 0)


def nearest(target: UInt8[Tensor, "i j k"], grid: Float[Tensor, "1 i j k 3"]) -> UInt8[Tensor, "i j k"]:
    """The label of the nearest voxel; 255 outside the window."""
    raised = target.to(torch.float32)[None, None] + 1  # so that 0 means "filled in by grid_sample"
    sampled = F.grid_sample(raised, grid, mode="nearest", align_corners=False)[0, 0]
    return torch.where(sampled > 0, sampled - 1, IGNORE).to(torch.uint8)
