"""Run a network over a whole volume, window by window; what is finished comes out slab by slab along the first axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.models.losses import log_probabilities
from multiseg.types import Index3, OnStep, no_progress

VOXELS_AT_ONCE = 2 * 64**3
"""On a CPU torch convolves one small window several times slower than two at once (another algorithm)."""
ROWS_AT_ONCE = 8
"""Planes along the first axis that become probabilities together: their copies take memory, too."""

Images: TypeAlias = Float[np.ndarray, "modality i j k"]
Slab: TypeAlias = tuple[slice, Float[np.ndarray, "label i j k"]]
"""Planes of a volume along its first axis, and the probabilities of every structure in them."""


def predict_volume(
    network: nn.Module,
    images: Images,
    present: Bool[np.ndarray, " modality"],
    patch: Index3,
    overlap: float = 0.5,
    windows_at_once: int = 0,
) -> Float[np.ndarray, "label i j k"]:
    """Probabilities of every structure (not of background) for one case, see `slabs`."""
    return whole(slabs(network, images, present, patch, overlap, windows_at_once), images.shape[1:])


def whole(
    parts: Iterator[Slab], shape: Sequence[int], on_step: OnStep = no_progress
) -> Float[np.ndarray, "label i j k"]:
    """The slabs of a volume as one array; its steps are planes."""
    volume: Float[np.ndarray, "label i j k"] | None = None
    for rows, probabilities in parts:
        if volume is None:
            volume = np.zeros((len(probabilities), *shape), dtype=np.float32)
        volume[:, rows] = probabilities
        on_step(rows.stop, shape[0], "planes")
    assert volume is not None, "a volume has slabs"
    return volume


def slabs(
    network: nn.Module,
    images: Images,
    present: Bool[np.ndarray, " modality"],
    patch: Index3,
    overlap: float = 0.5,
    windows_at_once: int = 0,
) -> Iterator[Slab]:
    """Probabilities of every structure (not of background) for one case, in slabs that follow each other.

    Windows overlap by the given share, and their logits are averaged (as in the published evaluation) with
    Gaussian weights (standard deviation an eighth of the patch, as nnU-Net does). Windows without any
    image voxel are skipped and count as background. A slab comes out when no window that is left reaches it, so that
    only about one patch along the first axis is in memory.

    Args:
        images: on the model's modality axis, normalised; channels that are not `present` count as 0.
        windows_at_once: 0 takes as many as fit into `VOXELS_AT_ONCE`.
    """
    windows_at_once = windows_at_once or max(1, VOXELS_AT_ONCE // math.prod(patch))
    device = next(network.parameters()).device
    case = _Case.of(images, present, patch)
    flags = torch.from_numpy(present).to(device)
    weight = _gaussian(patch)
    seen = _seen(case)
    corners = [corner for corner in window_corners(case.padded, patch, overlap) if case.cut(seen, corner).any()]
    batches = [corners[start : start + windows_at_once] for start in range(0, len(corners), windows_at_once)]
    total: _Total | None = None
    for batch in batches:
        with torch.inference_mode():
            windows = torch.stack([case.window(corner) for corner in batch]).to(device)
            logits = network(windows, flags.expand(len(batch), -1)).detach().float().cpu()
        if total is None:
            reach = max(one[-1][0] - one[0][0] for one in batches)
            total = _Total(case, logits.shape[1], patch[0] + reach)
        yield from total.finished(batch[0][0])
        for corner, window_logits in zip(batch, logits, strict=True):
            total.add(corner, window_logits, weight)
    if total is None:
        num = _num_labels(network, len(images), patch, device)
        yield slice(0, case.shape[0]), np.zeros((num, *case.shape), dtype=np.float32)
    else:
        yield from total.finished(case.padded[0])


@dataclass(frozen=True, eq=False)
class _Case:
    """A volume that is padded to at least one patch, with the case in the middle as in training; nothing is copied.

    Attributes:
        channels: those that are present.
        before: voxels of padding before the case.
    """

    images: Images
    channels: tuple[int, ...]
    patch: Index3
    before: Index3
    padded: Index3

    @classmethod
    def of(cls, images: Images, present: Bool[np.ndarray, " modality"], patch: Index3) -> _Case:
        shape = images.shape[1:]
        padded = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
        before = tuple((m - n + 1) // 2 for m, n in zip(padded, shape, strict=True))
        return cls(images, tuple(np.flatnonzero(present).tolist()), patch, _index3(before), _index3(padded))

    @property
    def shape(self) -> Index3:
        return _index3(self.images.shape[1:])

    def box(self, corner: Index3) -> tuple[slice, ...]:
        """The part of the case that is in the window at a corner of the padded volume."""
        starts = [c - b for c, b in zip(corner, self.before, strict=True)]
        return tuple(
            slice(max(0, start), min(n, start + p)) for start, n, p in zip(starts, self.shape, self.patch, strict=True)
        )

    def cut(self, volume: Bool[np.ndarray, "i j k"], corner: Index3) -> Bool[np.ndarray, "_ _ _"]:
        return volume[self.box(corner)]

    def window(self, corner: Index3) -> Float[Tensor, "modality i j k"]:
        """The present channels of a window, float32; 0 elsewhere."""
        window = torch.zeros(len(self.images), *self.patch)
        box = self.box(corner)
        starts = [part.start + b - c for part, b, c in zip(box, self.before, corner, strict=True)]
        inside = tuple(slice(s, s + part.stop - part.start) for s, part in zip(starts, box, strict=True))
        for channel in self.channels:
            window[channel][inside] = torch.from_numpy(np.ascontiguousarray(self.images[channel][box])).float()
        return window


class _Total:
    """Weighted sums of logits in those planes of the padded volume that windows still reach."""

    def __init__(self, case: _Case, num_logits: int, thickness: int) -> None:
        self.case, self.first, self.thickness = case, 0, min(thickness, case.padded[0])
        self.logits = torch.zeros(num_logits, self.thickness, *case.padded[1:])
        self.weights = torch.zeros(self.thickness, *case.padded[1:])

    def add(self, corner: Index3, logits: Float[Tensor, "logit i j k"], weight: Float[Tensor, "i j k"]) -> None:
        corner = (corner[0] - self.first, *corner[1:])
        part_of(self.logits, corner, self.case.patch).addcmul_(logits, weight)
        part_of(self.weights[None], corner, self.case.patch).add_(weight)

    def finished(self, stop: int) -> Iterator[Slab]:
        """The planes before `stop`; their room is taken by later ones."""
        while self.first < stop:
            num = min(stop - self.first, self.thickness)
            for start in range(0, num, ROWS_AT_ONCE):
                yield from self._slab(start, min(start + ROWS_AT_ONCE, num))
            for sums in (self.logits, self.weights[None]):
                for start in range(0, self.thickness, num):  # so far apart that no copy is needed
                    moved = sums[:, start + num : start + 2 * num]
                    sums[:, start : start + moved.shape[1]] = moved
                sums[:, self.thickness - num :] = 0
            self.first += num

    def _slab(self, start: int, stop: int) -> Iterator[Slab]:
        i, j, k = (slice(b, b + n) for b, n in zip(self.case.before, self.case.shape, strict=True))
        start, stop = max(start, i.start - self.first), min(stop, i.stop - self.first)
        if start >= stop:
            return
        weights = self.weights[start:stop, j, k]
        mean = self.logits[:, start:stop, j, k] / weights.clamp(min=1e-8)
        probabilities = log_probabilities(mean[None])[0, 1:].exp() * (weights > 0)
        before = self.first - i.start
        yield slice(before + start, before + stop), probabilities.numpy()


def _seen(case: _Case) -> Bool[np.ndarray, "i j k"]:
    """Where a present channel is not 0."""
    seen = np.zeros(case.shape, dtype=bool)
    for channel in case.channels:
        for start in range(0, case.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            seen[rows] |= case.images[channel, rows] != 0
    return seen


def _index3(sizes: Sequence[int]) -> Index3:
    i, j, k = (int(size) for size in sizes)
    return i, j, k


def window_corners(shape: Sequence[int], patch: Index3, overlap: float) -> Iterator[Index3]:
    """Corners of evenly spaced windows that cover the whole shape and overlap by at least the given share, sorted.

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
