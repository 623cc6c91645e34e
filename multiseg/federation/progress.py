"""What a federated run tells of itself as it goes, in events, in words and in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Waiting:
    """These sites are not there; none: all are there again."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Began:
    """A round began; the sites are those that are asked."""

    round: int
    rounds: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Came:
    """A site answered, `seconds` after it was asked; `sent` and `received` are bytes."""

    round: int
    site: str
    kind: str
    sent: int
    received: int
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A site counts as failed in this round."""

    round: int
    site: str
    reason: str


@dataclass(frozen=True)
class Resent:
    """A site was sent its task again."""

    round: int
    site: str
    reason: str


@dataclass(frozen=True)
class Noted:
    """Something a person should know: of a site, or of the run where it names none."""

    round: int
    site: str
    text: str


@dataclass(frozen=True)
class SiteRound:
    """What one site did in a round.

    Attributes:
        dice: of the model that the round began with, on the site's validation cases; NaN where it has none.
        validation: the same by database (and subset of sequences).
        loss: mean of the training in this round.
        sent, received: bytes to and from the site.
    """

    dice: float
    validation: Mapping[str, float]
    loss: float
    num_cases: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RoundDone:
    """A round was combined and saved.

    Attributes:
        mean, worst: Dice over the sites of the model that the round began with; NaN where no site has cases for it.
        failed: sites whose update is not in it, and why.
        single: parts of the network that only one site sent.
        epsilon: what the noise guarantees so far; infinite without any.
        seconds_left: if all rounds take as long as those of this process so far.
    """

    round: int
    rounds: int
    mean: float
    worst: float
    sites: Mapping[str, SiteRound]
    failed: Mapping[str, str] = field(default_factory=dict)
    single: tuple[str, ...] = ()
    epsilon: float = math.inf
    seconds: float = 0.0
    seconds_left: float = 0.0
    is_best: bool = False


@dataclass(frozen=True)
class Finished:
    """All rounds are done; `test` is the best model's Dice by site and database on test cases."""

    round: int
    best_round: int
    best: float
    test: Mapping[str, Mapping[str, float]]


Event = Waiting | Began | Came | Refused | Resent | Noted | RoundDone | Finished
