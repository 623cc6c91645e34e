"""Every site's own model on every site's test cases: whose training carries over to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from multiseg.federation.centre.exchange import Desk, exchange, tell_events, tell_failed
from multiseg.federation.centre.experiment_folder import Models, State, commit
from multiseg.federation.centre.scope import as_a_site_has_it, as_the_server_has_it, learnt_with
from multiseg.federation.centre.site_answers import dice_of
from multiseg.federation.messages import EVALUATE, Answer, SiteTask
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import from_payload, to_payload
from multiseg.models.network_parts import Part, moved, sound
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
            as_the_server_has_it(info, state.roster, options, learnt_with(state.learnt, state.roster, [site])),
        )
        for site, answer in answers.items()
    }


def untested(folder: Path, state: State, options: FederationOptions) -> dict[str, tuple[str, ...]]:
    """By site whose model of the last round is there, the sites that have not tested it; only where there are any."""
    if not options.schedule.cross_site:
        return {}
    cross, all_sites = state.final.get(CROSS, {}), (*options.sites, *options.held_out)
    there = [site for site in state.roster.sites if (folder / _file(site)).is_file()]
    owed = {
        whose: tuple(site for site in all_sites if site not in cross.get(whose, {}))
        for whose in there
        if read_info(folder / _file(whose)).step == state.round
    }
    return {whose: sites for whose, sites in owed.items() if sites}


def is_handed_round(folder: Path, state: State, options: FederationOptions) -> bool:
    """Whether every site's model has been offered to the others, whoever did not answer."""
    offered: Mapping[str, object] = state.final.get(CROSS, {})
    return all(whose in offered for whose in untested(folder, state, options))


def cross_evaluated(desk: Desk, state: State) -> State:
    """Hand each site's model to all sites that have not tested it, those held out included, and save what they score.

    A site that has let one deadline pass is not asked for the models that follow; the same command asks it again.
    """
    silent: dict[str, str] = {}
    for whose, sites in untested(desk.folder, state, desk.options).items():
        tasks = _tasks(desk, state, whose, [site for site in sites if site not in silent])
        outcome = exchange(desk, tasks, replace(desk.terms(least=0), described=state.roster.described))
        tell_events(desk, state.round, outcome)
        tell_failed(desk, state.round, outcome, f"it has not tested what {whose} trained")
        silent |= outcome.failed
        cross, scores = state.final.get(CROSS, {}), {site: dice_of(told) for site, told in outcome.answers.items()}
        cross = {**cross, whose: {**cross.get(whose, {}), **scores}}
        state = replace(state, final={**state.final, CROSS: cross})
        commit(desk.folder, state, {})
    return state


def _tasks(desk: Desk, state: State, whose: str, sites: Sequence[str]) -> dict[str, SiteTask]:
    """The model of one site for each of these sites, which lay in what is their own, as it was last used."""
    options, info = desk.options, read_info(desk.folder / _file(whose))
    tensors = to_payload(load_weights(desk.folder / _file(whose)), options.privacy.payload)
    tasks = {}
    for site in sites:
        number = state.kept.get(site, state.round)
        trains = site in options.sites
        as_here = as_a_site_has_it(info, state.roster, options, site, state.learnt) if trains else info
        body = {"info": as_here.to_json(), "split": "test", "subsets": options.schedule.evaluate_subsets}
        tasks[site] = desk.task(EVALUATE, number, tensors, **body, kept=number)
    return tasks


def _file(site: str) -> str:
    return f"site-{site}.safetensors"
