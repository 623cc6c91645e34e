"""From the answers of a round to the next global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from multiseg.federation.aggregate import Mean, aggregated, refused
from multiseg.federation.centre.answers import why_unclear
from multiseg.federation.centre.experiment import State
from multiseg.federation.centre.optimisers import stepped
from multiseg.federation.centre.roster import num_cases, trains
from multiseg.federation.masks import relative, unmasked
from multiseg.federation.messages import Answer
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import from_payload
from multiseg.models.parts import SHARED, Part, moved, sound


def why_refused(answer: Answer, trained: Sequence[Part], options: FederationOptions) -> str:
    """Why a site's answer to a round is of no use, "" where it is.

    Args:
        trained: the parts that the site is to send.
    """
    reason = refused(answer.tensors, {part.name: part.shape for part in trained}, options.privacy.masked)
    missing = [part.name for part in trained if part.name not in answer.tensors]
    # Without masks a site may keep a part back, by its own rules; with them a sum would stay masked.
    if not reason and missing and (options.privacy.masked or len(missing) == len(trained)):
        reason = f"it lacks {len(missing)} of {len(trained)} parts, such as {missing[0]!r}"
    return f"its update was refused: {reason}" if reason else why_unclear(answer)


def weight_of(site: str, state: State, group: str, answer: Answer | None, options: FederationOptions) -> float:
    """How much a site counts in the mean of the parts of a group."""
    if options.aggregate.weights == "equal":
        return 1.0
    if options.aggregate.weights == "cases" or answer is None:
        return float(num_cases(state.roster.sites[site], state.roster.info.space, group))
    return float(answer.body.get("exposure", {}).get(group, 0))


def combined(
    state: State, answers: Mapping[str, Answer], parts: Sequence[Part], options: FederationOptions
) -> tuple[dict[str, Tensor], dict[str, Tensor], Mean]:
    """The next global weights, the server optimiser's state, and the mean update that they come from."""
    if options.privacy.masked:
        mean = unmasked(
            {site: answer.tensors for site, answer in answers.items()},
            masked_weights(state, options),
            members(state, parts, options),
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
    return sound(moved(change, state.network, parts)), optimiser, mean


def masked_weights(state: State, options: FederationOptions) -> dict[str, float]:
    """How much each site counts where it weighs its own update, in parts of the largest."""
    return relative({site: weight_of(site, state, SHARED, None, options) for site in state.roster.sites})


def members(state: State, parts: Sequence[Part], options: FederationOptions) -> dict[str, tuple[str, ...]]:
    """By part, the sites that send it; what nobody sends is left out."""
    found: dict[str, list[str]] = {}
    for site in sorted(state.roster.sites):
        for part in trains(site, state.roster, parts, options):
            found.setdefault(part.name, []).append(site)
    return {name: tuple(sites) for name, sites in found.items()}
