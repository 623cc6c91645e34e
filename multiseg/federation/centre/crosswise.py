"""Every site's own model on every site's test cases: whose training carries over to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from multiseg.federation.centre.answers import dice_of, why_unclear
from multiseg.federation.centre.exchange import Desk, exchange, tell_events
from multiseg.federation.centre.experiment import Models, State, commit
from multiseg.federation.centre.scope import as_the_server_has_it
from multiseg.federation.messages import EVALUATE, Answer
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import from_payload, to_payload
from multiseg.models.parts import Part, moved, sound
from multiseg.models.saved import load_weights, read_info

CROSS = "cross"
"""Of a state's `final`: by the site whose model it is, then by the site that tested it, Dice by database."""


def site_models(
    state: State, answers: Mapping[str, Answer], all_parts: Sequence[Part], options: FederationOptions
) -> Models:
    """What each site made of the network in the last round, by file name; none where the run asks for none.

    Args:
        state: as the round began.
        answers: of the round.
    """
    last = state.round + 1
    if not options.schedule.cross_site or last < options.schedule.rounds:
        return {}
    info = replace(state.roster.info, step=last)
    return {
        _file(site): (
            sound(moved(from_payload(answer.tensors), state.network, all_parts)),
            as_the_server_has_it(info, state.roster, options, {*state.kept, site}),
        )
        for site, answer in answers.items()
    }


def untested(folder: Path, state: State, options: FederationOptions) -> list[str]:
    """The sites whose model of the last round is there and has not been handed round."""
    if not options.schedule.cross_site:
        return []
    there = [site for site in state.roster.sites if (folder / _file(site)).is_file()]
    return [
        site
        for site in there
        if read_info(folder / _file(site)).step == state.round and site not in state.final.get(CROSS, {})
    ]


def cross_evaluated(desk: Desk, state: State) -> State:
    """Hand each site's model to all sites, those held out included, and save what they score."""
    options = desk.options
    for whose in untested(desk.folder, state, options):
        info = read_info(desk.folder / _file(whose))
        tensors = to_payload(load_weights(desk.folder / _file(whose)), options.privacy.payload)
        body = {"info": info.to_json(), "split": "test", "subsets": "full"}
        # By the number of the task a site finds what is its own, as it was last used.
        numbers = {site: state.kept.get(site, state.round) for site in (*options.sites, *options.held_out)}
        tasks = {site: desk.task(EVALUATE, number, tensors, **body, kept=number) for site, number in numbers.items()}
        outcome = exchange(desk, tasks, desk.terms(why_unclear, least=0))
        tell_events(desk, state.round, outcome)
        scores = {site: dice_of(answer) for site, answer in outcome.answers.items()}
        state = replace(state, final={**state.final, CROSS: {**state.final.get(CROSS, {}), whose: scores}})
        commit(desk.folder, state, {})
    return state


def _file(site: str) -> str:
    return f"site-{site}.safetensors"
