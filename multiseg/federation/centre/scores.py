"""Scores global models by the sites' evaluations, and keeps the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiseg.federation.centre.crosswise import cross_evaluate, untested
from multiseg.federation.centre.exchange import Desk, ask
from multiseg.federation.centre.experiment_folder import WORST, Best, Models, State, commit
from multiseg.federation.centre.run_events import Finished
from multiseg.federation.centre.scope import info_at_server, info_at_site
from multiseg.federation.centre.site_answers import dice_of, number_of
from multiseg.federation.centre.site_info import has_validation
from multiseg.federation.centre.site_roster import personal_parts
from multiseg.federation.messages import EVALUATE, FINISH, SiteTask
from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import to_payload
from multiseg.models.saved import BEST, LAST, ModelInfo, load_weights, read_info


def mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def worst(values: Iterable[float]) -> float:
    """The smallest finite value; NaN if there are none."""
    return min((value for value in values if math.isfinite(value)), default=math.nan)


def info_of(state: State) -> ModelInfo:
    """The description of the current global model; its step counts the rounds."""
    return replace(state.roster.info, step=state.round)


def as_saved(state: State, options: FederationOptions) -> ModelInfo:
    """The description in the file of the global model."""
    return info_at_server(info_of(state), state.roster, options, state.learnt)


def missing_scores(state: State, dice: Mapping[str, float]) -> tuple[str, ...]:
    """The sites that can score a model and have not scored this one, so that its mean cannot be compared.

    A site that has answered before can if it has sent a score; of any other site its validation cases decide.
    """
    missing = []
    for site, info in state.roster.sites.items():
        scores = [number_of(entry["sites"][site]["dice"]) for entry in state.history if site in entry["sites"]]
        scores += [dice[site]] if site in dice else []
        can_score = any(map(math.isfinite, scores)) if scores else has_validation(info, state.roster.info.space)
        if can_score and not math.isfinite(dice.get(site, math.nan)):
            missing.append(site)
    return tuple(missing)


def scored(desk: Desk, state: State, dice: Mapping[str, float]) -> tuple[State, Models]:
    """The state with its model scored by the sites' Dice, and the files in which it becomes the best model.

    The untrained model never is the best, and a model that not all sites have scored is not compared.
    """
    if not state.round:
        return replace(state, scored=0), {}
    if missing := missing_scores(state, dice):
        desk.note(state.round, f"this model is not compared with the best: no Dice from {', '.join(missing)}.")
        return state, {}
    info = as_saved(state, desk.options)
    model = (state.network, info.at(info.step, {"dice": mean(dice.values()), **dice}))
    new, models = replace(state, scored=state.round), {}
    if _is_better(mean(dice.values()), state.mean):
        models[BEST] = model
        new = replace(new, mean=_best(state, mean(dice.values())))
    if _is_better(worst(dice.values()), state.worst):
        models[WORST] = model
        new = replace(new, worst=_best(state, worst(dice.values())))
    return new, models


def _is_better(score: float, best: Best) -> bool:
    return score > best.score or (math.isnan(best.score) and score >= 0)


def _best(state: State, score: float) -> Best:
    return Best(score, state.round, {site: state.kept.get(site, 0) for site in state.roster.sites})


def is_unfinished(folder: Path, state: State, options: FederationOptions) -> bool:
    """Whether something is left to do: rounds, the last model's score, or tests of the best or the sites' models."""
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
    """Score the last model, send the best one to all sites, and let them test it.

    Sites that have done so are not asked again.
    """
    if state.scored < state.round:
        state = _score_last(desk, state)
    tasks, missing = _last_tasks(desk, state), "it has not tested the best model"
    outcome = ask(desk, state.round, tasks, desk.terms(least=0, described=state.roster.described), missing)
    test = {**state.final.get("test", {}), **{site: dice_of(answer) for site, answer in outcome.answers.items()}}
    state = replace(state, final={**state.final, "test": test, "failed": dict(outcome.failed)})
    commit(desk.folder, state, {})
    state = cross_evaluate(desk, state)
    desk.on_event(Finished(state.round, state.mean.round, state.mean.score, test))
    return state


def _last_tasks(desk: Desk, state: State) -> dict[str, SiteTask]:
    """The best model for each site that has not tested it; training sites also keep it."""
    options, roster, untested = desk.options, state.roster, _untested(state, desk.options)
    info = read_info(desk.folder / BEST)
    tensors = to_payload(load_weights(desk.folder / BEST), options.privacy.payload)
    body: dict[str, Any] = {"split": "test", "subsets": options.schedule.evaluate_subsets}
    body["personal_parts"] = list(personal_parts(roster, options))
    tasks = {}
    for site in (name for name in options.sites if name in untested):
        whole = info_at_site(info, roster, options, site, state.learnt).to_json()
        # The round number tells the site which of its own parts belong to that model.
        number = state.mean.kept.get(site, info.step)
        tasks[site] = desk.task(FINISH, number, tensors, info=whole, kept=number, **body)
    for site in (name for name in options.held_out if name in untested):
        tasks[site] = desk.task(EVALUATE, info.step, tensors, info=info.to_json(), **body)
    return tasks


def _score_last(desk: Desk, state: State) -> State:
    """The state with a score for the model of the last round, saved."""
    options = desk.options
    tensors = to_payload(state.network, options.privacy.payload)
    body = {"info": info_of(state).to_json(), "split": "val", "subsets": options.schedule.evaluate_subsets}
    body["personal_parts"] = list(personal_parts(state.roster, options))
    numbers = {site: state.kept.get(site, 0) for site in options.sites}
    tasks = {site: desk.task(EVALUATE, number, tensors, **body, kept=number) for site, number in numbers.items()}
    outcome = ask(desk, state.round, tasks, desk.terms(described=state.roster.described))
    validation = {site: dice_of(answer) for site, answer in outcome.answers.items()}
    new, models = scored(desk, state, {site: mean(values.values()) for site, values in validation.items()})
    if new.mean.round < 0:  # no model has a score, so the last one counts as the best
        models = {**models, BEST: (state.network, as_saved(state, options))}
        new = replace(new, mean=_best(state, math.nan))
    is_tested = new.mean.round == state.mean.round
    new = replace(new, final={**(state.final if is_tested else {}), "validation": validation})
    # A site that joined after the last round may have made the network grow.
    commit(desk.folder, new, {**models, LAST: (new.network, as_saved(new, options))})
    return new
