"""Separable linear maps of a volume: blurring, coarse voxels, smooth fields.

Each is a small matrix per axis, so that a volume costs three matrix products, and the product of two matrices applies
one map after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from multiseg.types import Index3


def along_axes(
    volume: Float[Tensor, "channel i j k"], matrices: Sequence[Float[Tensor, "_ _"] | None]
) -> Float[Tensor, "channel i2 j2 k2"]:
    """Apply matrix n to every line of the volume along axis n; None leaves an axis unchanged."""
    along_i, along_j, along_k = matrices
    if along_k is not None:
        volume = volume @ along_k.T
    if along_j is not None:
        volume = along_j @ volume
    if along_i is not None:
        lines = along_i @ rearrange(volume, "channel i j k -> channel i (j k)")
        volume = rearrange(lines, "channel i (j k) -> channel i j k", k=volume.shape[3])
    return volume


def gaussian(size: int, sigma_voxels: float, device: torch.device) -> Float[Tensor, "after before"]:
    """A Gaussian around each voxel with a peak of 1, since the caller divides by the blurred mask."""
    x = torch.arange(size, device=device, dtype=torch.float32)
    return torch.exp(-((x[:, None] - x) ** 2) / (2 * sigma_voxels**2))


def coarsening(size: int, factor: float, device: torch.device) -> Float[Tensor, "after before"]:
    """Means over voxels about `factor` times as large (so that a whole number fits), interpolated linearly."""
    num = max(1, round(size / factor))
    width = size / num
    fine = torch.arange(size, device=device, dtype=torch.float32)
    coarse = torch.arange(num, device=device, dtype=torch.float32)[:, None]
    overlap = torch.minimum((coarse + 1) * width, fine + 1) - torch.maximum(coarse * width, fine)
    means = overlap.clamp(min=0) / width
    position = ((fine + 0.5) / width - 0.5).clamp(0, num - 1)[:, None]
    return (1 - (position - coarse.T).abs()).clamp(min=0) @ means


def quadratic(size: int, device: torch.device) -> Float[Tensor, "after 3"]:
    """The three Bernstein polynomials of degree 2 over the window, which sum to 1 and are never negative."""
    x = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    return torch.stack([(1 - x) ** 2, 2 * x * (1 - x), x**2], dim=1)


def num_controls(size: int, spacing_voxels: float) -> int:
    """The number of cubic B-splines with this spacing that reach into `size` voxels."""
    return int((size - 1) / spacing_voxels) + 4


def cubic_splines(size: int, spacing_voxels: float, device: torch.device) -> Float[Tensor, "after control"]:
    """Uniform cubic B-splines, which sum to 1 and are never negative, so a field stays within its controls."""
    x = torch.arange(size, device=device, dtype=torch.float32)[:, None] / spacing_voxels
    distance = (x - torch.arange(-1, num_controls(size, spacing_voxels) - 1, device=device)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def smooth_field(
    controls: Float[Tensor, "channel a b c"], size: Index3, spacing_voxels: float
) -> Float[Tensor, "channel i j k"]:
    """The cubic B-spline field of controls that are `spacing_voxels` apart; the first is one before the window."""
    return along_axes(controls, [cubic_splines(n, spacing_voxels, controls.device) for n in size])
