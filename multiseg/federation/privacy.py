"""What a site does to its update before it leaves: a bound on its length, noise, fewer bits."""

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
    """The Euclidean norm of all parts together, summed in float64 in the order of their names."""
    squares = (torch.linalg.vector_norm(update[name], dtype=torch.float64).item() ** 2 for name in sorted(update))
    return math.sqrt(math.fsum(squares))


def clipped(update: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """The update u as u * min(1, clip / |u|), over all parts together; a clip of 0 leaves it as it is."""
    norm = update_norm(update) if clip else 0.0
    if norm <= clip:
        return dict(update)
    return {name: tensor * (clip / norm) for name, tensor in update.items()}


def derived_key(secret: bytes, length: int, *meaning: str | int) -> bytes:
    """A key for one purpose from a secret (HKDF-SHA256, RFC 5869): other words of `meaning`, an unrelated key."""
    return HKDF(SHA256(), length, salt=None, info=json.dumps(meaning).encode()).derive(secret)


def noise_generator(secret: bytes, experiment: str, round: int, digest: str) -> np.random.Generator:
    """The generator of a site's noise in one round.

    Whoever can draw the noise again can take it away again, so nothing public may seed it, such as the run's seed:
    the secret is the site's own, 32 random bytes or more that never leave it. The same noise on two different updates
    gives away their difference, so the digest is of the update itself: what the site was asked does not tell updates
    apart, since its data or its own layers may have changed. torch's own generator will not do: on a CPU it takes in
    32 bits of its seed, few enough to try them all. This one is Philox with a key of 128 bits.

    Args:
        digest: of the update before noise, and of the noise's size.
    """
    key = derived_key(secret, 16, "noise", experiment, round, digest)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


def noise_std(noise: float, clip: float, num_sites: int = 1, weight: float = 1.0) -> float:
    """The standard deviation of the noise that one site adds to every value, noise * clip / (weight * sqrt(n)).

    A site whose own update is seen adds all of it: n = 1, weight = 1. Under masks only sum_i w_i u_i over the n sites
    of a part is seen, and they share the work: noise of this size makes w_i u_i noisy with noise * clip / sqrt(n)
    at every site, hence the sum with noise * clip, and that is what must hide the site that could move the sum most,
    by clip times the largest weight, which is 1. So weights have to be given in parts of the largest, and a site that
    weighs little adds more to its update. What holds against the server alone: if c of the sites tell it their
    noise, sqrt(1 - c / n) of it remains.

    Args:
        noise, clip: see `PrivacyOptions`.
        num_sites: that share the part, under masks.
        weight: of this site in the sum, in parts of the largest, under masks.
    """
    return noise * clip / (weight * math.sqrt(num_sites))


def noised(
    update: Mapping[str, Tensor], std: float | Mapping[str, float], generator: np.random.Generator
) -> dict[str, Tensor]:
    """The update with Gaussian noise on every value, float32; drawn in the order of the parts' names.

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
    """The epsilon of (epsilon, delta) differential privacy after so many rounds, by Flower's accountant.

    A round is one Gaussian mechanism: its Renyi divergence of order alpha is alpha / (2 noise^2) (Mironov 2017,
    arXiv:1702.07476), rounds add up, and every site takes part in every one, so nothing is gained by sampling. What is
    hidden is a site's whole update against none, that is, all of a site's cases at once. It covers the update
    only: losses, Dice and counts that a site tells are outside of it.

    Returns:
        0 before the first round, infinity without noise.
    """
    if rounds == 0 or noise == 0:
        return 0.0 if rounds == 0 else math.inf
    from flwr.serverapp import (  # heavy, and only here
        GaussianPrivacyEvent,
        NeighboringRelation,
        PrivacyConfig,
        RdpAccountant,
        SamplingMethod,
    )

    # Without amplification by sampling the size of the population has no effect.
    config = PrivacyConfig(delta, 1, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION)
    accountant = RdpAccountant(config)
    accountant.compose(GaussianPrivacyEvent(noise, 1, 1), rounds)
    return float(accountant.get_epsilon(delta))


def to_payload(tensors: Mapping[str, Tensor], payload: str) -> dict[str, Tensor]:
    """The tensors as they travel: floating point as "float32" or "float16", whole numbers as they are.

    float16 keeps 11 bits of a number's precision down to 6e-5 and steps of 6e-8 below.

    Raises:
        FederationError: a finite value is too large for float16 (65504).
    """
    dtype = WIRE[payload]
    sent = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name, tensor in sent.items():
        if dtype == torch.float16 and bool((torch.isinf(tensor) & torch.isfinite(tensors[name])).any()):
            largest = float(tensors[name].abs().nan_to_num(posinf=0.0).max())
            raise FederationError(
                f"{name!r} holds values up to {largest:.3g}, and float16 ends at 65504: set privacy.payload = "
                '"float32".'
            )
    return sent


def from_payload(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What travelled, as float32 again; whole numbers as they are."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
