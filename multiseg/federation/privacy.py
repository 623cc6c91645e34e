"""How a site protects its update before sending it: clipping, noise, fewer bits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import torch
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from multiseg.errors import FederationError

WIRE = {"float32": torch.float32, "float16": torch.float16}


def update_norm(update: Mapping[str, Tensor]) -> float:
    """The Euclidean norm over all parts, summed in float64 in the order of their names."""
    squares = (torch.linalg.vector_norm(update[name], dtype=torch.float64).item() ** 2 for name in sorted(update))
    return math.sqrt(math.fsum(squares))


def clipped(update: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """The update u as u * min(1, clip / |u|), over all parts; unchanged for a clip of 0."""
    norm = update_norm(update) if clip else 0.0
    if norm <= clip:
        return dict(update)
    return {name: tensor * (clip / norm) for name, tensor in update.items()}


def derived_key(secret: bytes, length: int, *meaning: str | int) -> bytes:
    """A key for one purpose from a secret (HKDF-SHA256, RFC 5869): another `meaning` gives an unrelated key."""
    return HKDF(SHA256(), length, salt=None, info=json.dumps(meaning).encode()).derive(secret)


def noise_generator(secret: bytes, experiment: str, round: int, digest: str) -> np.random.Generator:
    """The generator of a site's noise in one round.

    Anyone who can draw the noise again can subtract it, so nothing public, such as the run's seed, may seed it: the
    secret is the site's own, at least 32 random bytes that never leave it. The same noise on two different updates
    reveals their difference, so the digest is of the update itself: the task alone does not identify the update, since
    the site's data or its own layers may have changed. torch's generator is not enough: on a CPU it uses 32 bits of
    its seed, few enough to try all. This one is Philox with a key of 128 bits.

    Args:
        digest: of the update before noise, and of the noise's size.
    """
    key = derived_key(secret, 16, "noise", experiment, round, digest)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


def noise_std(noise: float, clip: float, num_sites: int = 1, weight: float = 1.0) -> float:
    """The standard deviation of the noise that one site adds to every value, noise * clip / (weight * sqrt(n)).

    Without masks the server sees the site's own update, which gets all of the noise: n = 1, weight = 1. Under masks
    it sees only sum_i w_i u_i over the n sites of a part, and the sites share the noise: each w_i u_i gets
    noise * clip / sqrt(n), hence the sum noise * clip. That has to hide the site that can move the sum most, by clip
    times the largest weight, which is 1. So weights are relative to the largest, and a site of small weight adds more
    noise to its update. This protects against the server alone: if c of the sites reveal their noise to it,
    sqrt(1 - c / n) of the noise remains.

    Args:
        noise, clip: see `PrivacyOptions`.
        num_sites: that share the part, under masks.
        weight: of this site in the sum, relative to the largest, under masks.
    """
    return noise * clip / (weight * math.sqrt(num_sites))


def noised(
    update: Mapping[str, Tensor], std: float | Mapping[str, float], generator: np.random.Generator
) -> dict[str, Tensor]:
    """The update with Gaussian noise on every value, float32, drawn in the order of the parts' names.

    Args:
        std: of all parts, or by part.
        generator: see `noise_generator`.
    """
    noisy = {}
    for name in sorted(update):
        scale = std[name] if isinstance(std, Mapping) else std
        drawn = generator.standard_normal(tuple(update[name].shape), dtype=np.float32)
        noisy[name] = torch.as_tensor(drawn).mul_(scale).add_(update[name].cpu())
    return noisy


def epsilon(noise: float, rounds: int, delta: float) -> float:
    """The epsilon of (epsilon, delta) differential privacy after these rounds, by Flower's accountant.

    A round is one Gaussian mechanism: its Renyi divergence of order alpha is alpha / (2 noise^2) (Mironov 2017,
    arXiv:1702.07476). Rounds add up, and every site takes part in each, so sampling amplifies nothing. It hides
    whether a site took part at all, that is, all of its cases at once. It covers only the update: losses, Dice and
    counts that a site reports are outside of it.

    Returns:
        0 before the first round, infinity without noise.
    """
    if rounds == 0 or noise == 0:
        return 0.0 if rounds == 0 else math.inf
    from flwr import serverapp as flower  # heavy, and only here

    # Without amplification by sampling the size of the population has no effect.
    relation, sampling = flower.NeighboringRelation.ADD_OR_REMOVE_ONE, flower.SamplingMethod.NO_AMPLIFICATION
    accountant = flower.RdpAccountant(flower.PrivacyConfig(delta, 1, relation, sampling))
    accountant.compose(flower.GaussianPrivacyEvent(noise, 1, 1), rounds)
    return float(accountant.get_epsilon(delta))


def to_payload(tensors: Mapping[str, Tensor], payload: str) -> dict[str, Tensor]:
    """The tensors as they are sent: floating point as "float32" or "float16", integers unchanged.

    float16 has 11 bits of precision down to 6e-5, and steps of 6e-8 below.

    Raises:
        FederationError: a finite value is too large for float16 (65504).
    """
    dtype = WIRE[payload]
    sent = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name, tensor in sent.items():
        if dtype == torch.float16 and bool((torch.isinf(tensor) & torch.isfinite(tensors[name])).any()):
            largest = float(tensors[name].abs().nan_to_num(posinf=0.0).max())
            raise FederationError(
                f"{name!r} holds values up to {largest:.3g}, but float16 ends at 65504: set privacy.payload = "
                '"float32".'
            )
    return sent


def from_payload(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Received tensors as float32; integers unchanged."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
