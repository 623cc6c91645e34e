"""Secure aggregation: the server learns the sum of three sites or more, and no site's own update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from multiseg.federation.aggregate import Mean


@dataclass(frozen=True)
class Circle:
    """Who sums up what with whom in one round; equal at all sites.

    Attributes:
        experiment, round: of the task.
        digest: of the weights that all sites received, see `digest_of`.
        keys: by site, its public key as hex.
        members: by part, the sites that train it.
    """

    experiment: str
    round: int
    digest: str
    keys: Mapping[str, str]
    members: Mapping[str, tuple[str, ...]]


def new_private_key() -> bytes:
    """A fresh X25519 private key, 32 bytes."""
    raise NotImplementedError


def public_key(private: bytes) -> str:
    """The public key that goes with a private one, as hex."""
    raise NotImplementedError


def masked(update: Mapping[str, Tensor], weight: float, site: str, private: bytes, circle: Circle) -> dict[str, Tensor]:
    """What the site sends: weight times update in fixed point plus the masks, int32, by part."""
    raise NotImplementedError


def unmasked(
    answers: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, float],
    members: Mapping[str, tuple[str, ...]],
) -> Mean:
    """The weighted mean of the sites' updates, from what they sent."""
    raise NotImplementedError
