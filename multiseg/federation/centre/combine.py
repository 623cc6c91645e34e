"""Combines the answers of a round into the next global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.aggregate import Mean, aggregated, refused
from multiseg.federation.centre.experiment_folder import State
from multiseg.federation.centre.site_roster import num_cases, trains
from multiseg.federation.centre.update_lengths import lengths, longest
from multiseg.federation.messages import Answer
from multiseg.federation.pairwise_masks import relative, unmasked
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import WIRE, from_payload
from multiseg.federation.strategies import stepped
from multiseg.models.network_parts import SHARED, Part, moved, sound


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
        mean = unmasked(
            {site: answer.tensors for site, answer in answers.items()},
            masked_weights(state, options),
            members(state, options),
        )
    else:
        groups = tuple(dict.fromkeys(part.group for part in parts))
        weights = {
            site: {group: weight_of(site, state, group, answer, options) for group in groups}
            for site, answer in answers.items()
        }
        updates = {site: from_payload(answer.tensors) for site, answer in answers.items()}
        mean = aggregated(updates, weights, parts, options.aggregate)
    statistics = {part.name for part in parts if part.is_statistic}
    change, optimiser = stepped(mean.update, state.optimiser, options.aggregate, statistics)
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
