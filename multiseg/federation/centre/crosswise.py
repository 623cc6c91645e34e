"""Tests the model that each site trained in the last round on the test cases of every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from multiseg.federation.centre.exchange import Desk, ask
from multiseg.federation.centre.experiment_folder import Models, State, commit
from multiseg.federation.centre.scope import info_at_server, info_at_site, learnt_with
from multiseg.federation.centre.site_answers import dice_of
from multiseg.federation.messages import EVALUATE, Answer, SiteTask
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import from_payload, to_payload
from multiseg.models.network_parts import Part, moved, sound
from multiseg.models.saved import load_weights, read_info

CROSS = "cross"
"""Key in a state's `final`: Dice by the site that trained the model, then the site that tested it, then database."""


def site_models(
    state: State, answers: Mapping[str, Answer], all_parts: Sequence[Part], options: FederationOptions
) -> Models:
    """The model that each site trained in the last round, by file name; empty if the run does not test them.

    Args:
        state: at the start of the round.
        answers: of the round.
    """
    last = state.round + 1
    if not options.schedule.cross_site or last < options.schedule.rounds:
        return {}
    info = replace(state.roster.info, step=last)
    return {
        _file(site): (
            sound(moved(from_payload(answer.tensors), state.network, all_parts)),
            info_at_server(info, state.roster, options, learnt_with(state.learnt, state.roster, [site])),
        )
        for site, answer in answers.items()
    }


def untested(folder: Path, state: State, options: FederationOptions) -> dict[str, tuple[str, ...]]:
    """The sites that have not tested each site's model of the last round; models that all have tested are left out."""
    if not options.schedule.cross_site:
        return {}
    cross, all_sites = state.final.get(CROSS, {}), (*options.sites, *options.held_out)
    missing = {}
    for owner in state.roster.sites:
        file = folder / _file(owner)
        if file.is_file() and read_info(file).step == state.round:
            missing[owner] = tuple(site for site in all_sites if site not in cross.get(owner, {}))
    return {owner: sites for owner, sites in missing.items() if sites}


def all_models_offered(folder: Path, state: State, options: FederationOptions) -> bool:
    """Whether every site's model has been offered to the others, even if some did not answer."""
    return all(owner in state.final.get(CROSS, {}) for owner in untested(folder, state, options))


def cross_evaluate(desk: Desk, state: State) -> State:
    """Send each site's model to all sites that have not tested it, held-out sites included, and save their scores.

    A site that misses one deadline is not asked for the models that follow; the same command asks it again.
    """
    silent: dict[str, str] = {}
    for owner, sites in untested(desk.folder, state, desk.options).items():
        tasks = _tasks(desk, state, owner, [site for site in sites if site not in silent])
        missing = f"it has not tested the model of {owner}"
        outcome = ask(desk, state.round, tasks, desk.terms(least=0, described=state.roster.described), missing)
        silent |= outcome.failed
        cross, scores = state.final.get(CROSS, {}), {site: dice_of(answer) for site, answer in outcome.answers.items()}
        cross = {**cross, owner: {**cross.get(owner, {}), **scores}}
        state = replace(state, final={**state.final, CROSS: cross})
        commit(desk.folder, state, {})
    return state


def _tasks(desk: Desk, state: State, owner: str, sites: Sequence[str]) -> dict[str, SiteTask]:
    """The task of each of these sites to test the model of `owner`, with the site's own parts as it last used them."""
    options, info = desk.options, read_info(desk.folder / _file(owner))
    tensors = to_payload(load_weights(desk.folder / _file(owner)), options.privacy.payload)
    tasks = {}
    for site in sites:
        number = state.kept.get(site, state.round)
        trains = site in options.sites
        site_info = info_at_site(info, state.roster, options, site, state.learnt) if trains else info
        body = {"info": site_info.to_json(), "split": "test", "subsets": options.schedule.evaluate_subsets}
        tasks[site] = desk.task(EVALUATE, number, tensors, **body, kept=number)
    return tasks


def _file(site: str) -> str:
    return f"site-{site}.safetensors"
