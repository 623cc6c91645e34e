"""The events of a federated run, and how each reads as a line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from multiseg.shown import TEXT, line


@dataclass(frozen=True)
class Waiting:
    """These sites are offline; none: all are online again."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Began:
    """A round started with these sites."""

    round: int
    rounds: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Came:
    """A site answered, `seconds` after it got the task; `sent` and `received` are bytes."""

    round: int
    site: str
    kind: str
    sent: int
    received: int
    seconds: float


@dataclass(frozen=True)
class SiteEvent:
    """Something happened to a site in a round, for a reason."""

    round: int
    site: str
    reason: str


class Refused(SiteEvent):
    """A site counts as failed in this round."""


class Resent(SiteEvent):
    """The task of a site was sent again."""


class Held(SiteEvent):
    """A site has its task and does not answer yet: it is busy, or waits for approval there."""


@dataclass(frozen=True)
class Noted:
    """A note on a site, or on the run if `site` is empty."""

    round: int
    site: str
    text: str


class Left(SiteEvent):
    """A site in the run's settings is no longer on the roster; the run continues without it."""


@dataclass(frozen=True)
class WentBack:
    """The run was put back to its state after `round` from round `before`."""

    round: int
    before: int


@dataclass(frozen=True)
class SiteRound:
    """The result of one site in a round.

    Attributes:
        dice: of the model that the round started from, on the site's validation cases; NaN if it has none.
        validation: the same by database (and subset of sequences).
        loss: mean of the training in this round.
        sent, received: bytes to and from the site.
        seconds: of its work, as the site reports.
        norm, norm_of_statistics: length of its update and of its running statistics; NaN under masks.
    """

    dice: float
    validation: Mapping[str, float]
    loss: float
    num_cases: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    norm: float = math.nan
    norm_of_statistics: float = math.nan


@dataclass(frozen=True)
class RoundDone:
    """A round was combined and saved.

    Attributes:
        mean, worst: Dice over the sites of the model that the round started from; NaN if no site has cases for it.
        failed: sites whose update is missing, and why.
        single: parts of the network that only one site sent.
        is_news: whether `single` differs from the round before.
        epsilon: of the noise so far, for the site with most releases; infinite without noise.
        seconds_left: estimated from the rounds of this process so far.
    """

    round: int
    rounds: int
    mean: float
    worst: float
    sites: Mapping[str, SiteRound]
    failed: Mapping[str, str] = field(default_factory=dict)
    single: tuple[str, ...] = ()
    is_news: bool = False
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


REASONS: dict[type[SiteEvent], str] = {
    Refused: "{site} FAILED: {reason}",
    Resent: "asked {site} again: {reason}",
    Left: "continues WITHOUT {site}: {reason}",
    Held: "{site} {reason}",
}
"""How an event of a site reads."""
Event = Waiting | Began | Came | Refused | Resent | Held | Noted | Left | WentBack | RoundDone | Finished


def in_words(event: Event) -> str:
    """One line of text; what sites wrote is cleaned."""
    if isinstance(event, RoundDone):
        return line(_round_in_words(event), TEXT)
    if isinstance(event, Finished):
        listed = "; ".join(f"{site} {parts_in_words(parts)}" for site, parts in event.test.items())
        return line(f"all {event.round} rounds done, best model after round {event.best_round}. Test: {listed}", TEXT)
    return line(f"round {event.round}: {_short_in_words(event)}", TEXT)


def _short_in_words(event: Waiting | Began | Came | SiteEvent | Noted | WentBack) -> str:
    match event:
        case SiteEvent():
            return REASONS[type(event)].format(site=event.site, reason=event.reason)
        case Waiting(sites=sites):
            return f"waiting for {', '.join(sites)}" if sites else "all sites are online"
        case Began(sites=sites):
            return f"asked {', '.join(sites)}"
        case Came(site=site, kind=kind):
            sizes = f"{megabytes(event.sent)} sent, {megabytes(event.received)} received"
            return f"{site} answered ({kind}) in {clock_time(event.seconds)}, {sizes}"
        case WentBack(before=before):
            return f"the run was put back to this round from round {before}"
        case Noted(site=site):
            return f"{site}: {event.text}" if site else event.text


def _round_in_words(event: RoundDone) -> str:
    """Scores come a round late: sites evaluate the model that a round starts from."""
    model = f"the model after round {event.round - 1}" if event.round > 1 else "the untrained model"
    sites = ", ".join(f"{site} {number(done.dice)} (loss {number(done.loss)})" for site, done in event.sites.items())
    text = f"round {event.round}/{event.rounds} done. Dice of {model}: {number(event.mean)}, by site {sites}"
    if event.failed:
        text += f"; WITHOUT {', '.join(event.failed)}"
    if event.is_news:
        text += f"; {len(event.single) or 'no'} parts from only one site"
    if math.isfinite(event.epsilon):
        text += f"; epsilon {event.epsilon:.3g}"
    left = f", {clock_time(event.seconds_left)} left" if event.seconds_left else ""
    return f"{text} ({clock_time(event.seconds)}{left})"


def parts_in_words(parts: Mapping[str, float]) -> str:
    """Scores by name."""
    return " ".join(f"{name} {number(value)}" for name, value in parts.items()) or "has no cases for it"


def number(value: float) -> str:
    """A score with three digits; a dash if it is undefined."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB"


def clock_time(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
