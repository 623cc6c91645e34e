"""Combines the answers of a round into the next global model.

An update that is longer than training can make it, or far longer than the others, is refused. Its length is its
Euclidean norm. Running statistics, which no gradient moves, are measured separately and only compared with those of
other sites.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.aggregate import Mean, aggregated, refused
from multiseg.federation.centre.exchange import Desk, ExchangeOutcome, withdrawn
from multiseg.federation.centre.experiment_folder import State
from multiseg.federation.centre.site_answers import number_of
from multiseg.federation.centre.site_info import num_cases
from multiseg.federation.centre.site_roster import trains
from multiseg.federation.messages import Answer
from multiseg.federation.pairwise_masks import relative, unmasked
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import WIRE, from_payload, update_norm
from multiseg.federation.strategies import stepped
from multiseg.models.network_parts import SHARED, Part, moved, sound

ADAM_STEP = 7.3
"""The largest step of Adam in learning rates: (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) with b1 = 0.9 and b2 = 0.999,
by the Cauchy-Schwarz inequality over its two moving averages."""
SLACK = 1.05
"""For rounding, on the wire and in the steps."""
ENOUGH = 3
"""With this many updates no single site can set their median."""
LOOK_BACK = 5
"""Earlier rounds to compare with if there are fewer updates."""

Lengths = tuple[float, float]
"""Norms of the weights and of the running statistics of an update."""


def why_refused(answer: Answer, trained: Sequence[Part], options: FederationOptions) -> str:
    """Why a site's answer to a round cannot be used; "" if it can.

    Args:
        trained: the parts that the site should send.
    """
    shapes = {part.name: part.shape for part in trained}
    reason = refused(answer.tensors, shapes, options.privacy.masked, (WIRE[options.privacy.payload],))
    missing = [part.name for part in trained if part.name not in answer.tensors]
    # Without masks a site may keep a part back, by its own rules; with masks the sum would then stay masked.
    if not reason and missing and (options.privacy.masked or len(missing) == len(trained)):
        reason = f"it lacks {len(missing)} of {len(trained)} parts, such as {missing[0]!r}"
    reason = reason or _why_too_long(answer, trained, options)
    return f"its update was refused: {reason}" if reason else ""


def _why_too_long(answer: Answer, trained: Sequence[Part], options: FederationOptions) -> str:
    if options.privacy.masked:
        return ""
    length, _ = lengths(from_payload(answer.tensors), trained)
    num_values = sum(answer.tensors[part.name].numel() for part in trained if part.name in answer.tensors)
    limit = longest(num_values, options)
    if length <= limit:
        return ""
    return f"it is {length:.3g} long, but {options.local.steps} steps with these settings give at most {limit:.3g}"


def weight_of(site: str, state: State, group: str, answer: Answer | None, options: FederationOptions) -> float:
    """The weight of a site in the mean of the parts of a group."""
    if options.aggregate.weights == "equal":
        return 1.0
    if options.aggregate.weights == "cases" or answer is None:
        return float(num_cases(state.roster.sites[site], state.roster.info.space, group))
    # A round cannot show more patches than it draws; sites round counts up.
    patches, least = options.local.steps * options.stream.batch_size * options.fit.accumulate, options.privacy.least
    limit = -(-patches // least) * least
    return float(min(answer.body.get("exposure", {}).get(group, 0), limit))


def combined(
    state: State, answers: Mapping[str, Answer], parts: Sequence[Part], options: FederationOptions
) -> tuple[dict[str, Tensor], dict[str, Tensor], Mean]:
    """The next global weights, the server optimiser's state, and the mean update."""
    if options.privacy.masked:
        sent = {site: answer.tensors for site, answer in answers.items()}
        mean = unmasked(sent, masked_weights(state, options), members(state, options))
    else:
        groups = tuple(dict.fromkeys((SHARED, *(part.group for part in parts))))
        weights = {
            site: {group: weight_of(site, state, group, answer, options) for group in groups}
            for site, answer in answers.items()
        }
        updates = {site: from_payload(answer.tensors) for site, answer in answers.items()}
        mean = aggregated(updates, weights, parts, options.aggregate)
    running = {part.name for part in parts if part.is_statistic}
    change, optimiser = stepped(mean.update, state.optimiser, options.aggregate, running)
    network = sound(moved(change, state.network, parts))
    broken = [name for name, tensor in (network | optimiser).items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise FederationError(
            f"round {state.round + 1} would leave {broken[0]} and {len(broken) - 1} other tensors of the network or "
            "the server's optimiser with numbers that are not finite. It is not saved: lower aggregate.learning_rate, "
            "or set privacy.clip."
        )
    return network, optimiser, mean


def masked_weights(state: State, options: FederationOptions) -> dict[str, float]:
    """The weight that each site applies to its own update, relative to the largest."""
    return relative({site: weight_of(site, state, SHARED, None, options) for site in state.roster.sites})


def members(state: State, options: FederationOptions) -> dict[str, tuple[str, ...]]:
    """The sites that send each part, sorted; parts that nobody sends are left out."""
    senders: dict[str, list[str]] = {}
    for site in sorted(state.roster.sites):
        for part in trains(site, state.roster, options):
            senders.setdefault(part.name, []).append(site)
    return {name: tuple(sites) for name, sites in senders.items()}


def lengths(update: Mapping[str, Tensor], parts: Sequence[Part]) -> Lengths:
    """The lengths of an update in float32."""
    running = {part.name for part in parts if part.is_statistic}
    weights = {name: tensor for name, tensor in update.items() if name not in running}
    return update_norm(weights), update_norm({name: update[name] for name in update.keys() & running})


def longest(num_values: int, options: FederationOptions) -> float:
    """The largest length of an update that these settings allow; infinite if no bound is known.

    Args:
        num_values: number of weights in the update.
    """
    local, privacy, fit = options.local, options.privacy, options.fit
    distance = local.steps * fit.learning_rate
    if local.optimiser == "adam":
        trained = distance * ADAM_STEP * math.sqrt(num_values)
    else:
        # FedProx's gradient is added before clipping, so clip_norm bounds it, too.
        trained = distance * fit.clip_norm if fit.clip_norm else math.inf
    sent = min(trained, privacy.clip or math.inf)
    # A normal vector of n numbers is practically never longer than sqrt(n) + 8.
    noise = privacy.noise * privacy.clip * (math.sqrt(num_values) + 8)
    return SLACK * (sent + noise)


def refuse_outliers(
    desk: Desk, state: State, outcome: ExchangeOutcome, least: int
) -> tuple[ExchangeOutcome, Mapping[str, Lengths]]:
    """The outcome without updates that are far longer than the others, and the length of each update.

    Under masks the server cannot see lengths and refuses none.

    Raises:
        FederationError: too few are left.
    """
    if desk.options.privacy.masked:
        return outcome, {}
    norms = {
        site: lengths(from_payload(answer.tensors), state.roster.parts) for site, answer in outcome.answers.items()
    }
    past = [
        (number_of(result.get("norm", 0.0)), number_of(result.get("norm_of_statistics", 0.0)))
        for entry in state.history[-LOOK_BACK:]
        for result in entry["sites"].values()
    ]
    too_long = outliers(norms, past, desk.options.aggregate.max_norm_ratio)
    reasons = {site: f"its update was refused: {why}" for site, why in too_long.items()}
    return withdrawn(desk, outcome, reasons, least), norms


def outliers(own: Mapping[str, Lengths], past: Sequence[Lengths], ratio: float) -> dict[str, str]:
    """The sites whose update is more than `ratio` times the reference length, and why.

    With three or more updates the reference is their median, which no single site can set. With fewer it is unclear
    who is wrong, so the reference is the longest accepted update of the last rounds; in the first round of two sites
    there is none.

    Args:
        own: lengths in this round, by site.
        past: of accepted updates in the rounds before.
        ratio: 0 for no comparison.
    """
    reasons: dict[str, str] = {}
    for index, what in enumerate(("its update", "its change of running statistics")):
        if len(own) >= ENOUGH:
            usual, reference = statistics.median(norms[index] for norms in own.values()), "the median of the sites"
        else:
            usual = max((norms[index] for norms in past), default=0.0)
            reference = "the longest of the rounds before"
        for site, norms in own.items():
            if ratio and usual > 0 and norms[index] > ratio * usual:
                reasons.setdefault(
                    site,
                    f"{what} is {norms[index]:.3g} long, {norms[index] / usual:.3g} times {reference} "
                    f"({usual:.3g}); the limit is aggregate.max_norm_ratio = {ratio:g}",
                )
    return reasons
