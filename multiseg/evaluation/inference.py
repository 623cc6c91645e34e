"""Run a network over a whole volume, window by window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.models.losses import log_probabilities
from multiseg.types import Index3

VOXELS_AT_ONCE = 2 * 64**3
"""On a CPU torch convolves one small window several times slower than two at once (another algorithm)."""


def predict_volume(
    network: nn.Module,
    images: Float[np.ndarray, "modality i j k"],
    present: Bool[np.ndarray, " modality"],
    patch: Index3,
    overlap: float = 0.5,
    windows_at_once: int = 0,
) -> Float[np.ndarray, "label i j k"]:
    """Probabilities of every structure (not of background) for one case.

    Windows overlap by the given share, and their logits are averaged (as in the published evaluation) with
    Gaussian weights (standard deviation an eighth of the patch, as nnU-Net does). Windows without any
    image voxel are skipped and count as background.

    Args:
        images: on the model's modality axis, normalised; channels that are not `present` count as 0.
        windows_at_once: 0 takes as many as fit into `VOXELS_AT_ONCE`.
    """
    windows_at_once = windows_at_once or max(1, VOXELS_AT_ONCE // math.prod(patch))
    device = next(network.parameters()).device
    given = torch.from_numpy(np.where(present[:, None, None, None], images, 0).astype(np.float32))
    volume, pads = padded(given, patch)
    weight = _gaussian(patch)
    flags = torch.from_numpy(present).to(device)
    total: Tensor | None = None
    weights = torch.zeros(volume.shape[1:])
    corners = [c for c in window_corners(tuple(volume.shape[1:]), patch, overlap) if part_of(volume, c, patch).any()]
    with torch.inference_mode():
        for start in range(0, len(corners), windows_at_once):
            batch = corners[start : start + windows_at_once]
            windows = torch.stack([part_of(volume, corner, patch) for corner in batch]).to(device)
            logits = network(windows, flags.expand(len(batch), -1))
            if total is None:
                total = torch.zeros(logits.shape[1], *volume.shape[1:])
            for corner, window_logits in zip(batch, logits.float().cpu(), strict=True):
                part_of(total, corner, patch).addcmul_(window_logits, weight)
                part_of(weights[None], corner, patch).add_(weight)
    if total is None:
        return np.zeros((_num_labels(network, len(images), patch, device), *images.shape[1:]), dtype=np.float32)
    part = tuple(slice(pad, pad + n) for pad, n in zip(pads, images.shape[1:], strict=True))
    mean = total[:, *part] / weights[part].clamp(min=1e-8)
    probabilities = log_probabilities(mean[None])[0, 1:].exp()
    return (probabilities * (weights[part] > 0)).numpy()


def window_corners(shape: Sequence[int], patch: Index3, overlap: float) -> Iterator[Index3]:
    """Corners of evenly spaced windows that cover the whole shape and overlap by at least the given share.

    Raises:
        UsageError: the share is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"the overlap of windows is {overlap}: give a share from 0 to below 1.")
    starts = []
    for n, p in zip(shape, patch, strict=True):
        stride = max(1, int(p * (1 - overlap) + 1e-6))  # whole voxels, so that rounding leaves no smaller overlap
        num = 1 + math.ceil((n - p) / stride) if n > p else 1
        starts.append(np.rint(np.linspace(0, n - p, num)).astype(int).tolist())
    yield from product(*starts)


def _num_labels(network: nn.Module, num_modalities: int, patch: Index3, device: torch.device) -> int:
    images = torch.zeros(1, num_modalities, *patch, device=device)
    present = torch.zeros(1, num_modalities, dtype=torch.bool, device=device)
    with torch.inference_mode():
        return log_probabilities(network(images, present)).shape[1] - 1


def part_of(volume: Tensor, corner: Index3, patch: Index3) -> Tensor:
    """The window at a corner of a volume with one axis before those of space; it shares its memory."""
    (i, j, k), (di, dj, dk) = corner, patch
    return volume[:, i : i + di, j : j + dj, k : k + dk]


def padded(volume: Tensor, patch: Index3) -> tuple[Tensor, Index3]:
    """The volume padded to at least one patch, with the case in the middle as in training, and the padding before."""
    missing = [max(0, p - n) for n, p in zip(volume.shape[1:], patch, strict=True)]
    before = [(m + 1) // 2 for m in missing]
    pads = [pad for m, b in zip(reversed(missing), reversed(before), strict=True) for pad in (b, m - b)]
    return F.pad(volume, pads), (before[0], before[1], before[2])


def _gaussian(patch: Index3) -> Float[Tensor, "i j k"]:
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in patch]
    return (axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]).clamp(min=1e-4)
