"""Secure aggregation: the server learns sums over three or more sites, not the update of one site.

Every two sites that share a part of the network agree on random numbers that only the two know. One adds them to its
update, the other subtracts them, so they cancel in the sum and only there (Bonawitz et al. 2017, "Practical Secure
Aggregation for Privacy-Preserving Machine Learning", their protocol 0: without recovery of sites that drop out, since
here a round waits for all of its sites).

This protects a site's update from a server that is curious but follows the protocol, and from anyone who reads its
disk. It does not protect from a server that lies: the server distributes the public keys, and could replace them with
its own. Nor from a server that colludes with all but one or two sites of a part: it can subtract their updates and is
left with one update, or the sum of two. Only noise hides what the sum itself reveals about a site: see
`multiseg.federation.privacy`. A site must not send two different updates under the same circle, since their
difference is not masked; the circle's digest distinguishes rounds that started from different weights.
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
"""The step of the fixed-point numbers; a sum may reach 2^31 steps, which is 128, in either direction."""
_MOST_STEPS = 2**31 - 1


@dataclass(frozen=True)
class Circle:
    """The sites that mask their updates for each other in one round: the same at all sites.

    Attributes:
        digest: of what all sites received, see `digest_of`.
        keys: public key by site.
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
    """The public key of a private one, as 64 hexadecimal digits."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of tensors, with their names, types and shapes, and of a text; 64 hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def members_by_part(parts: Iterable[Part], groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The sites that train each part, sorted, from the sites that train each group."""
    return {part.name: tuple(sorted(groups.get(part.group, ()))) for part in parts}


def relative(weights: Mapping[str, float]) -> dict[str, float]:
    """The sites' weights relative to the largest, as `masked` and `noise_std` take them.

    Raises:
        FederationError: none of them is above 0.
    """
    largest = max(weights.values(), default=0.0)
    if not largest > 0:
        raise FederationError(f"the sites have the weights {dict(weights)}: a mean needs at least one above 0.")
    return {site: weight / largest for site, weight in weights.items()}


def masked(update: Mapping[str, Tensor], weight: float, site: str, private: bytes, circle: Circle) -> dict[str, Tensor]:
    """The masked update: by part, weight * update in steps of `RESOLUTION`, plus its masks, modulo 2^32, as int32.

    Args:
        weight: of the site, relative to the largest, so that the sum stays in range.
        private: the site's private key, which belongs to its public key in the circle.

    Raises:
        FederationError: a part's circle is too small or without this site, a key is invalid, the weight is not in
            (0, 1], or a value is not finite or so large that the sum could overflow.
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
    """The mean of the sites' masked updates, with the weights that the sites applied.

    It is the weighted mean up to the rounding of n sites' values: n * RESOLUTION / (2 * sum of weights).

    Raises:
        FederationError: a part was not sent by exactly the sites that share it, in one shape.
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
    unknown = sorted({name for sent in answers.values() for name in sent} - set(members))
    if unknown:
        raise FederationError(f"{unknown[0]!r} was sent, but no sites share it: its masks would not cancel.")
    return Mean(update, dict(members))


def _check_members(name: str, sites: Sequence[str], site: str) -> None:
    if len(set(sites)) < LEAST_MASKED or len(set(sites)) < len(sites) or site not in sites:
        raise FederationError(
            f"{name!r} of {site} would be summed over {', '.join(sites) or 'nobody'}: a sum hides a site only among "
            f"{LEAST_MASKED} or more, each once, including itself. Keep the part at the site, or turn masks off."
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
        raise FederationError(f"{name!r} came in different forms, {sorted(kinds)}: refuse tensors other than int32.")


def _steps(update: Float[Tensor, "*part"], weight: float, num_sites: int, name: str) -> UInt32[np.ndarray, " value"]:
    """weight * update in whole steps, two's complement."""
    steps = np.rint(update.detach().cpu().double().numpy().reshape(-1) * (weight / RESOLUTION))
    limit = _MOST_STEPS // num_sites
    if not np.all(np.abs(steps) <= limit):  # also if one is NaN
        raise FederationError(
            f"{name!r} has changed by {float(update.abs().max()):.3g}, but a masked sum over {num_sites} sites allows "
            f"each at most {limit * RESOLUTION:.3g}: set privacy.clip, or a smaller learning rate."
        )
    return steps.astype(np.int64).astype(np.uint32)


def _secrets(site: str, private: bytes, circle: Circle, peers: set[str]) -> dict[str, bytes]:
    """The secret that this site shares with each peer."""
    if circle.keys.get(site) != public_key(private):
        raise FederationError(f"the circle has a wrong public key for {site}: ask the site to describe itself again.")
    own_key = X25519PrivateKey.from_private_bytes(private)
    secrets = {}
    for peer in sorted(peers - {site}):
        try:
            secrets[peer] = own_key.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(circle.keys[peer])))
        except (KeyError, ValueError) as error:
            raise FederationError(f"{peer} has no usable public key: {circle.keys.get(peer)!r}.") from error
    return secrets


def _mask(
    secret: bytes, meaning: tuple[str, int, str, str], site: str, peer: str, size: int
) -> UInt32[np.ndarray, " value"]:
    """Uniform random numbers for one part in one round that only the two sites know."""
    key = derived_key(secret, 32, "mask", *meaning, min(site, peer), max(site, peer))
    # The key is used only once, so the nonce may be 0.
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * size))
    return np.frombuffer(stream, dtype="<u4").astype(np.uint32, copy=False)
