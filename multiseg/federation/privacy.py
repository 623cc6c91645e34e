"""What a site does to its update before it leaves: a bound on its length, noise, fewer bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor


def update_norm(update: Mapping[str, Tensor]) -> float:
    """The Euclidean norm of all parts together."""
    raise NotImplementedError


def clipped(update: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """The update, scaled down to a norm of `clip` where it is longer; a clip of 0 leaves it."""
    raise NotImplementedError


def noise_generator(secret: bytes, experiment: str, round: int, digest: str) -> np.random.Generator:
    """The generator of a round's noise."""
    raise NotImplementedError


def noised(
    update: Mapping[str, Tensor], std: float | Mapping[str, float], generator: np.random.Generator
) -> dict[str, Tensor]:
    """The update with Gaussian noise of this standard deviation (of all parts, or by part) on every value."""
    raise NotImplementedError


def noise_std(noise: float, clip: float, num_sites: int = 1, weight: float = 1.0) -> float:
    """The standard deviation of the noise that one site adds."""
    raise NotImplementedError


def epsilon(noise: float, rounds: int, delta: float) -> float:
    """The epsilon after so many rounds; infinite without noise."""
    raise NotImplementedError


def to_payload(tensors: Mapping[str, Tensor], payload: str) -> dict[str, Tensor]:
    """The tensors in the precision of the wire; whole numbers stay as they are."""
    raise NotImplementedError


def from_payload(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as float32 again."""
    raise NotImplementedError
