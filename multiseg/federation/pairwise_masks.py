"""Secure aggregation: the server learns sums over three sites or more, and no site's own update.

Every two sites that share a part of the network agree on random numbers that only the two know; one adds them to what
it sends, the other subtracts them, so they cancel in the sum and only there (Bonawitz et al. 2017, "Practical Secure
Aggregation for Privacy-Preserving Machine Learning", their protocol 0: without recovery of sites that drop out, as here
a round waits for all of its sites).

This protects a site's update from a server that follows the protocol and is curious, and from whoever reads its disk.
It does not protect from a server that lies: it hands out the public keys, and could give each site keys that it made
itself. Nor from one that works together with all of a part's sites but one or two: less their own updates, the sum is
the update of the one left, or the sum of the two. What the sum itself tells of a site, only noise hides: see
`multiseg.federation.privacy`. A site must not send two different updates under the same circle, since their
difference is not masked; the circle's digest tells apart rounds that began from different weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from jaxtyping import Float, UInt32
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.aggregate import Mean
from multiseg.federation.plan import LEAST_MASKED
from multiseg.federation.privacy import derived_key
from multiseg.models.network_parts import Part

RESOLUTION = 2.0**-24
"""What one step of the fixed-point numbers is worth; a sum may reach 2^31 steps, which is 128, to either side."""
_MOST_STEPS = 2**31 - 1


@dataclass(frozen=True)
class Circle:
    """Who sums up what with whom in one round: the same at all sites.

    Attributes:
        digest: of what all sites received alike, see `digest_of`.
        keys: by site, its public key.
        members: by part, the sites that train it, see `members_by_part`.
    """

    experiment: str
    round: int
    digest: str
    keys: Mapping[str, str]
    members: Mapping[str, tuple[str, ...]]


def new_private_key() -> bytes:
    """A fresh private key for X25519 (RFC 7748), 32 bytes that never leave the site."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> str:
    """The public key to a private one, as 64 hexadecimal digits."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of tensors, with their names, types and shapes, and of a text; 64 hexadecimal digits."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        found.update(repr((name, array.dtype.str, array.shape)).encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def members_by_part(parts: Iterable[Part], groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """For every part the sites that train it, by name, from the sites that train each group."""
    return {part.name: tuple(sorted(groups.get(part.group, ()))) for part in parts}


def relative(weights: Mapping[str, float]) -> dict[str, float]:
    """The sites' weights in parts of the largest, as `masked` and `noise_std` take them.

    Raises:
        FederationError: none of them is above 0.
    """
    largest = max(weights.values(), default=0.0)
    if not largest > 0:
        raise FederationError(f"the sites weigh {dict(weights)}: none has anything to add to a mean.")
    return {site: weight / largest for site, weight in weights.items()}


def masked(update: Mapping[str, Tensor], weight: float, site: str, private: bytes, circle: Circle) -> dict[str, Tensor]:
    """What a site sends: by part, weight * update in steps of `RESOLUTION`, plus its masks, modulo 2^32, as int32.

    Args:
        weight: of the site, in parts of the largest, so that the sum stays in range.
        private: the site's private key, to its public one in the circle.

    Raises:
        FederationError: a part's circle is too small or without this site, a key is none, the weight is no part of
            the largest, or a value is not finite or so large that the sum could pass its range.
    """
    if not 0 < weight <= 1:
        raise FederationError(f"{site} has the weight {weight}: give weights from above 0 to 1, 1 for the largest.")
    for name in update:
        _check_members(name, circle.members.get(name, ()), site)
    secrets = _secrets(site, private, circle, {peer for name in update for peer in circle.members[name]})
    sent = {}
    for name in sorted(update):
        members = circle.members[name]
        total = _steps(update[name], weight, len(members), name)
        for peer in members:
            if peer == site:
                continue
            mask = _mask(secrets[peer], (circle.experiment, circle.round, circle.digest, name), site, peer, total.size)
            total = total + mask if site < peer else total - mask
        sent[name] = torch.from_numpy(total.view(np.int32)).reshape(update[name].shape)
    return sent


def unmasked(
    answers: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, float],
    members: Mapping[str, tuple[str, ...]],
) -> Mean:
    """The mean of the sites' updates, weighted by the weights that they used, from what they sent.

    It is the plain weighted mean but for the rounding of n sites' values: n * RESOLUTION / (2 * sum of weights).

    Raises:
        FederationError: a part does not come from exactly the sites that share it, in one shape.
    """
    update = {}
    for name, sites in members.items():
        _check_senders(name, sites, answers)
        total = np.zeros(answers[sites[0]][name].numel(), dtype=np.uint32)
        for site in sites:
            total += answers[site][name].contiguous().numpy().reshape(-1).view(np.uint32)
        steps = torch.from_numpy(total.view(np.int32)).double()
        mean = steps * (RESOLUTION / math.fsum(weights[site] for site in sites))
        update[name] = mean.float().reshape(answers[sites[0]][name].shape)
    strange = sorted({name for sent in answers.values() for name in sent} - set(members))
    if strange:
        raise FederationError(f"{strange[0]!r} was sent, but no sites share it: its masks would stay.")
    return Mean(update, dict(members))


def _check_members(name: str, sites: Sequence[str], site: str) -> None:
    if len(set(sites)) < LEAST_MASKED or len(set(sites)) < len(sites) or site not in sites:
        raise FederationError(
            f"{name!r} of {site} would be summed over {', '.join(sites) or 'nobody'}: a sum hides a site among "
            f"{LEAST_MASKED} or more, each once, itself among them. Keep the part at the site, or do without masks."
        )


def _check_senders(name: str, sites: Sequence[str], answers: Mapping[str, Mapping[str, Tensor]]) -> None:
    senders = {site for site, sent in answers.items() if name in sent}
    if senders != set(sites) or len(sites) < LEAST_MASKED:
        raise FederationError(
            f"the masks of {name!r} cancel over {', '.join(sites)}, {LEAST_MASKED} sites or more, but it came from "
            f"{', '.join(sorted(senders)) or 'nobody'}: wait for all of them, or repeat the round."
        )
    kinds = {(tuple(answers[site][name].shape), str(answers[site][name].dtype)) for site in sites}
    if len(kinds) > 1 or next(iter(kinds))[1] != "torch.int32":
        raise FederationError(f"{name!r} came in different forms, {sorted(kinds)}: refuse what is not int32 first.")


def _steps(update: Float[Tensor, "*part"], weight: float, num_sites: int, name: str) -> UInt32[np.ndarray, " value"]:
    """weight * update in whole steps, two's complement."""
    steps = np.rint(update.detach().cpu().double().numpy().reshape(-1) * (weight / RESOLUTION))
    most = _MOST_STEPS // num_sites
    if not np.all(np.abs(steps) <= most):  # also where one is NaN
        raise FederationError(
            f"{name!r} has changed by {float(update.abs().max()):.3g}, and a sum over {num_sites} sites that is masked "
            f"has room for {most * RESOLUTION:.3g} of each: set privacy.clip, or a smaller learning rate."
        )
    return steps.astype(np.int64).astype(np.uint32)


def _secrets(site: str, private: bytes, circle: Circle, peers: set[str]) -> dict[str, bytes]:
    """By peer, the secret that this site shares with it."""
    if circle.keys.get(site) != public_key(private):
        raise FederationError(f"the circle has another public key for {site} than its own: describe the site anew.")
    own = X25519PrivateKey.from_private_bytes(private)
    secrets = {}
    for peer in sorted(peers - {site}):
        try:
            secrets[peer] = own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(circle.keys[peer])))
        except (KeyError, ValueError) as error:
            raise FederationError(f"{peer} has no usable public key: {circle.keys.get(peer)!r}.") from error
    return secrets


def _mask(
    secret: bytes, meaning: tuple[str, int, str, str], site: str, peer: str, size: int
) -> UInt32[np.ndarray, " value"]:
    """Uniform random numbers that only the two sites know, and that stand for one part of one round."""
    key = derived_key(secret, 32, "mask", *meaning, min(site, peer), max(site, peer))
    # The key serves once, so the nonce may be 0.
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * size))
    return np.frombuffer(stream, dtype="<u4").astype(np.uint32, copy=False)
