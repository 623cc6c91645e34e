"""How good a global model is by what the sites say of it, and whether it is the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiseg.federation.centre.crosswise import cross_evaluated, untested
from multiseg.federation.centre.exchange import Desk, exchange, tell_events, tell_failed
from multiseg.federation.centre.experiment_folder import WORST, Best, Models, State, commit
from multiseg.federation.centre.run_events import Finished
from multiseg.federation.centre.scope import as_a_site_has_it, as_the_server_has_it
from multiseg.federation.centre.site_answers import dice_of, number_of
from multiseg.federation.centre.site_roster import has_validation, personal_parts
from multiseg.federation.messages import EVALUATE, FINISH, SiteTask
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import to_payload
from multiseg.models.saved import BEST, LAST, ModelInfo, load_weights, read_info


def mean(values: Iterable[float]) -> float:
    """The mean of what is finite; NaN where nothing is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def worst(values: Iterable[float]) -> float:
    """The least of what is finite; NaN where nothing is."""
    return min((value for value in values if math.isfinite(value)), default=math.nan)


def info_of(state: State) -> ModelInfo:
    """What the global model is now; its step counts the rounds."""
    return replace(state.roster.info, step=state.round)


def as_saved(state: State, options: FederationOptions) -> ModelInfo:
    """What the file of the global model says of it."""
    return as_the_server_has_it(info_of(state), state.roster, options, state.learnt)


def unheard(state: State, dice: Mapping[str, float]) -> tuple[str, ...]:
    """The sites that can judge a model and have not judged this one, so that its score compares with no other.

    A site can that has done so before; of a site that has never answered its validation cases tell.
    """
    missing = []
    for site, info in state.roster.sites.items():
        said = [number_of(entry["sites"][site]["dice"]) for entry in state.history if site in entry["sites"]]
        said += [dice[site]] if site in dice else []
        can = any(map(math.isfinite, said)) if said else has_validation(info, state.roster.info.space)
        if can and not math.isfinite(dice.get(site, math.nan)):
            missing.append(site)
    return tuple(missing)


def scored(desk: Desk, state: State, dice: Mapping[str, float]) -> tuple[State, Models]:
    """The state with its model scored by the sites' Dice, and the model files that it is the best for.

    The model that nobody has trained is never the best one, and one that not all sites have judged is not compared.
    """
    if not state.round:
        return replace(state, scored=0), {}
    if missing := unheard(state, dice):
        desk.note(state.round, f"this model is not compared with the best: no Dice from {', '.join(missing)}.")
        return state, {}
    info = as_saved(state, desk.options)
    found = (state.network, info.at(info.step, {"dice": mean(dice.values()), **dice}))
    new, models = replace(state, scored=state.round), {}
    if _is_better(mean(dice.values()), state.mean):
        models[BEST] = found
        new = replace(new, mean=_best(state, mean(dice.values())))
    if _is_better(worst(dice.values()), state.worst):
        models[WORST] = found
        new = replace(new, worst=_best(state, worst(dice.values())))
    return new, models


def _is_better(score: float, best: Best) -> bool:
    return score > best.score or (math.isnan(best.score) and score >= 0)


def _best(state: State, score: float) -> Best:
    return Best(score, state.round, {site: state.kept.get(site, 0) for site in state.roster.sites})


def lacks(folder: Path, state: State, options: FederationOptions) -> bool:
    """Whether something is left to do of a run: rounds, a score of the last model, sites that lack the best one, models
    of sites that nobody else has tested."""
    return (
        state.round < options.schedule.rounds
        or set(options.sites) != set(state.roster.sites)
        or state.scored < state.round
        or bool(_untested(state, options))
        or bool(untested(folder, state, options))
    )


def _untested(state: State, options: FederationOptions) -> set[str]:
    return {*options.sites, *options.held_out} - set(state.final.get("test", {}))


def finish(desk: Desk, state: State) -> State:
    """Score the last model, hand the best one to the sites, test it there and at the sites held out.

    Sites that have done their part of it are not asked again.
    """
    if state.scored < state.round:
        state = _score_last(desk, state)
    outcome = exchange(desk, _last_tasks(desk, state), replace(desk.terms(least=0), described=state.roster.described))
    tell_events(desk, state.round, outcome)
    tell_failed(desk, state.round, outcome, "it has not tested the best model")
    test = {**state.final.get("test", {}), **{site: dice_of(answer) for site, answer in outcome.answers.items()}}
    state = replace(state, final={**state.final, "test": test, "failed": dict(outcome.failed)})
    commit(desk.folder, state, {})
    state = cross_evaluated(desk, state)
    desk.on_event(Finished(state.round, state.mean.round, state.mean.score, test))
    return state


def _last_tasks(desk: Desk, state: State) -> dict[str, SiteTask]:
    """The best model for each site that has not tested it; a site that trains keeps it."""
    options, roster, untested = desk.options, state.roster, _untested(state, desk.options)
    info = read_info(desk.folder / BEST)
    tensors = to_payload(load_weights(desk.folder / BEST), options.privacy.payload)
    body = {"split": "test", "subsets": options.schedule.evaluate_subsets, **_kept_home(state, options)}
    tasks = {}
    for site in (name for name in options.sites if name in untested):
        whole = as_a_site_has_it(info, roster, options, site, state.learnt).to_json()
        # By the number of the task a site finds what was its own in that model.
        number = state.mean.kept.get(site, info.step)
        tasks[site] = desk.task(FINISH, number, tensors, info=whole, kept=number, **body)
    for site in (name for name in options.held_out if name in untested):
        tasks[site] = desk.task(EVALUATE, info.step, tensors, info=info.to_json(), **body)
    return tasks


def _kept_home(state: State, options: FederationOptions) -> dict[str, Any]:
    """Of a task's body, the parts under masks that each site has of its own: they belong to the model there."""
    return {"personal_parts": list(personal_parts(state.roster, options))}


def _score_last(desk: Desk, state: State) -> State:
    """The state with a score for the model of the last round, saved."""
    options = desk.options
    tensors = to_payload(state.network, options.privacy.payload)
    asked = {"split": "val", "subsets": options.schedule.evaluate_subsets}
    body = {"info": info_of(state).to_json(), **asked, **_kept_home(state, options)}
    numbers = {site: state.kept.get(site, 0) for site in options.sites}
    tasks = {site: desk.task(EVALUATE, number, tensors, **body, kept=number) for site, number in numbers.items()}
    outcome = exchange(desk, tasks, replace(desk.terms(), described=state.roster.described))
    tell_events(desk, state.round, outcome)
    validation = {site: dice_of(answer) for site, answer in outcome.answers.items()}
    new, models = scored(desk, state, {site: mean(values.values()) for site, values in validation.items()})
    if new.mean.round < 0:  # there is nothing to choose by, so the last model it is
        models = {**models, BEST: (state.network, as_saved(state, options))}
        new = replace(new, mean=_best(state, math.nan))
    is_tested = new.mean.round == state.mean.round
    new = replace(new, final={**(state.final if is_tested else {}), "validation": validation})
    # A site that joined after the last round has perhaps made the network grow.
    commit(desk.folder, new, {**models, LAST: (new.network, as_saved(new, options))})
    return new
