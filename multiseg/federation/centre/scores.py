"""How good a global model is by what the sites say of it, and whether it is the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from multiseg.federation.centre.exchange import Desk, exchange
from multiseg.federation.centre.experiment import WORST, Best, Models, State, commit
from multiseg.federation.centre.progress import Finished
from multiseg.federation.messages import EVALUATE, FINISH, ROUND, Answer
from multiseg.federation.privacy import to_payload
from multiseg.models.saved import BEST, ModelInfo, load_weights, read_info


def mean(values: Iterable[float]) -> float:
    """The mean of what is finite; NaN where nothing is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def worst(values: Iterable[float]) -> float:
    """The least of what is finite; NaN where nothing is."""
    return min((value for value in values if math.isfinite(value)), default=math.nan)


def number_of(value: Any) -> float:
    """A number from JSON, in which null stands for what is undefined."""
    return math.nan if value is None else float(value)


def validation_of(answer: Answer) -> dict[str, float]:
    """Dice of the model that a round began with, as a site tells it, by database and perhaps subset."""
    return {str(name): number_of(value) for name, value in answer.body["metrics"].get("validation", {}).items()}


def why_unclear(answer: Answer) -> str:
    """Why the numbers that a site tells are none, "" where they are."""
    try:
        if answer.kind == ROUND:
            told = [*validation_of(answer).values(), number_of(answer.body["metrics"].get("loss"))]
            told += [number_of(answer.body.get("seconds", {}).get("total")), *map(float, _exposure(answer))]
            int(answer.body.get("num_cases", 0))
        else:
            told = list(_dice(answer).values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"what it tells of losses, Dice and counts is not to be understood: {error!r}"
    return "it tells an infinite number" if any(math.isinf(value) for value in told) else ""


def _exposure(answer: Answer) -> list[Any]:
    return list(answer.body.get("exposure", {}).values())


def info_of(state: State) -> ModelInfo:
    """What the global model is now; its step counts the rounds."""
    return replace(state.roster.info, step=state.round)


def scored(state: State, dice: Mapping[str, float]) -> tuple[State, Models]:
    """The state with its model scored by the sites' Dice, and the model files that it is the best for.

    The model that nobody has trained is never the best one.
    """
    new = replace(state, scored=state.round)
    if not state.round:
        return new, {}
    info = info_of(state)
    found = (state.network, info.at(info.step, {"dice": mean(dice.values()), **dice}))
    models = {}
    if mean(dice.values()) > state.mean.score or (math.isnan(state.mean.score) and mean(dice.values()) >= 0):
        models[BEST] = found
        new = replace(new, mean=Best(mean(dice.values()), state.round))
    if worst(dice.values()) > state.worst.score or (math.isnan(state.worst.score) and worst(dice.values()) >= 0):
        models[WORST] = found
        new = replace(new, worst=Best(worst(dice.values()), state.round))
    return new, models


def finish(desk: Desk, state: State) -> State:
    """Score the last model, hand the best one to the sites, test it there and at the sites held out."""
    if state.scored < state.round:
        state = _score_last(desk, state)
    options, round_ = desk.options, state.round
    info = read_info(desk.folder / BEST)
    tensors = to_payload(load_weights(desk.folder / BEST), options.privacy.payload)
    body = {"info": info.to_json(), "split": "test", "subsets": options.schedule.evaluate_subsets}
    # The round of the task is that of the model, so that a site lays in what was its own after that round.
    tasks = {
        site: desk.task(FINISH, info.step, tensors, **body, kept=state.kept.get(site, 0)) for site in options.sites
    } | {site: desk.task(EVALUATE, info.step, tensors, **body) for site in options.held_out}
    outcome = exchange(desk, tasks, desk.terms(why_unclear, least=0))
    test = {site: _dice(answer) for site, answer in outcome.answers.items()}
    state = replace(state, final={**state.final, "test": test, "failed": dict(outcome.failed)})
    commit(desk.folder, state, {})
    desk.on_event(Finished(round_, state.mean.round, state.mean.score, test))
    return state


def _score_last(desk: Desk, state: State) -> State:
    """The state with a score for the model of the last round, saved."""
    options = desk.options
    tensors = to_payload(state.network, options.privacy.payload)
    body = {"info": info_of(state).to_json(), "split": "val", "subsets": options.schedule.evaluate_subsets}
    tasks = {
        site: desk.task(EVALUATE, state.round, tensors, **body, kept=state.kept.get(site, 0)) for site in options.sites
    }
    answers = exchange(desk, tasks, desk.terms(why_unclear)).answers
    validation = {site: _dice(answer) for site, answer in answers.items()}
    new, models = scored(state, {site: mean(values.values()) for site, values in validation.items()})
    if new.mean.round < 0:  # no site has cases to choose by, so the last model it is
        models = {**models, BEST: (state.network, info_of(state))}
        new = replace(new, mean=Best(math.nan, state.round))
    new = replace(new, final={"validation": validation})
    commit(desk.folder, new, models)
    return new


def _dice(answer: Answer) -> dict[str, float]:
    return {str(name): number_of(told.get("dice")) for name, told in answer.body.get("metrics", {}).items()}
