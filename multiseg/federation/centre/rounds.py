"""A federated run from the first handshake to the last evaluation, over any link to the sites."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from multiseg.errors import FederationError, StoppedError, UsageError
from multiseg.federation.aggregate import Mean
from multiseg.federation.centre.answer_size import allow_answers
from multiseg.federation.centre.combine import combined, masked_weights, why_refused
from multiseg.federation.centre.crosswise import CROSS, is_handed_round, site_models
from multiseg.federation.centre.earlier import keep, rounds_to_hold
from multiseg.federation.centre.exchange import (
    Desk,
    ExchangeOutcome,
    Link,
    SetAsideError,
    Terms,
    exchange,
    tell_events,
    withdrawn,
)
from multiseg.federation.centre.experiment_folder import State, claimed, commit, opened
from multiseg.federation.centre.handshake import handshake
from multiseg.federation.centre.run_events import Began, Event, Left, RoundDone, SiteRound
from multiseg.federation.centre.run_logs import RunLogs, busy_with
from multiseg.federation.centre.scope import learnt_with
from multiseg.federation.centre.scores import as_saved, finish, info_of, lacks, mean, scored, worst
from multiseg.federation.centre.site_answers import number_of, validation_of
from multiseg.federation.centre.site_roster import personal_parts, trains
from multiseg.federation.centre.update_lengths import LOOK_BACK, Lengths, lengths, outliers
from multiseg.federation.messages import ROUND, Answer, SiteTask
from multiseg.federation.plan import FederationOptions, check, without
from multiseg.federation.privacy import epsilon, from_payload, to_payload
from multiseg.models.network_parts import Part
from multiseg.models.saved import BEST, LAST


@dataclass(frozen=True)
class RunResult:
    """How a run ended: rounds done, whether that is all of them, and its best model by the mean over the sites.

    Attributes:
        history: one entry a round, see `run_events.RoundDone`.
        final: after the last round, Dice by site and database: "validation" of the last model, "test" of the best,
            "cross" of each site's own model.
    """

    folder: Path
    round: int
    finished: bool
    best: float
    best_round: int
    history: Sequence[Mapping[str, Any]] = ()
    final: Mapping[str, Any] = field(default_factory=dict)

    @property
    def test(self) -> Mapping[str, Mapping[str, float]]:
        """Dice of the best model on test cases, by site and database; empty before the end."""
        found: Mapping[str, Mapping[str, float]] = self.final.get("test", {})
        return found


def run(
    options: FederationOptions,
    link: Link,
    folder: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> RunResult:
    """Run all rounds that are not done yet, into `folder`, going on from what is there.

    Raises:
        UsageError: the settings cannot be meant, or are not those of the run that the folder holds.
        FederationError: a site does not fit, or a round cannot be completed. What is finished is saved.
        ResourceError: the disk is full, or another process runs the experiment.
    """
    check(options)
    with claimed(folder, options):
        state = opened(folder)
        if state is not None:
            keep(folder, state.round, options.schedule.keep_rounds)
        with RunLogs(folder, options.experiment, state.round if state else 0, on_event) as logs:
            desk = Desk(options, folder, link, logs.event, should_stop, clock, partial(busy_with, folder))
            try:
                state, options = _without_lost(desk, state)
            except StoppedError:
                state = opened(folder)
    if state is None:
        return RunResult(folder, 0, False, math.nan, -1)
    finished, best = "test" in state.final and is_handed_round(folder, state, options), state.mean
    return RunResult(folder, state.round, finished, best.score, best.round, state.history, state.final)


def _without_lost(desk: Desk, held: State | None) -> tuple[State, FederationOptions]:
    """Conduct the run, without the sites that turn out to be lost to it; its state, and its settings without them."""
    while True:
        try:
            return _conducted(desk, held), desk.options
        except SetAsideError as lost:
            held = opened(desk.folder)
            desk = _set_aside(desk, lost.reasons, held.round if held else 0)


def _set_aside(desk: Desk, reasons: Mapping[str, str], number: int) -> Desk:
    """The desk for the run as it is when these sites are not among its own.

    Raises:
        FederationError: too few are left for the run's own rules.
    """
    try:
        fewer = without(desk.options, reasons)
    except UsageError as error:
        listed = "; ".join(f"{site}: {why.removesuffix('.')}" for site, why in reasons.items())
        raise FederationError(
            f"the run cannot go on without these sites. {listed}. {error} All finished rounds are saved."
        ) from error
    for site, why in reasons.items():
        desk.on_event(Left(number, site, why))
    return replace(desk, options=fewer)


def _conducted(desk: Desk, held: State | None) -> State:
    if held is not None and not lacks(desk.folder, held, desk.options):
        return held
    state = handshake(desk, held)
    began, first = desk.clock(), state.round
    while state.round < desk.options.schedule.rounds:
        took = (desk.clock() - began) / (state.round - first) if state.round > first else 0.0
        state = _round(desk, state, took)
    return finish(desk, state)


def _round(desk: Desk, state: State, took: float) -> State:
    """Ask all sites, combine what they send, save. A round `took` so many seconds so far."""
    now, options, began = state.round + 1, desk.options, desk.clock()
    all_parts = state.roster.parts
    desk.on_event(Began(now, options.schedule.rounds, tuple(state.roster.sites)))
    trained = {site: trains(site, state.roster, options) for site in state.roster.sites}
    terms = desk.terms(lambda answer: why_refused(answer, trained[answer.site], options))
    terms = replace(terms, described=state.roster.described)
    allow_answers(desk.folder, sum(tensor.numel() for tensor in state.network.values()))
    outcome = exchange(desk, _tasks(desk, state), terms)
    outcome, long = _of_usual_length(desk, state, outcome, all_parts, terms)
    network, optimiser, combination = combined(state, outcome.answers, all_parts, options)
    _pass_on(desk, now, outcome, combination)
    sites = {site: _site_round(answer, outcome, long.get(site)) for site, answer in outcome.answers.items()}
    new, models = scored(desk, state, {site: told.dice for site, told in sites.items()})
    single = tuple(name for name, names in combination.contributors.items() if len(names) == 1)
    done = RoundDone(
        now,
        options.schedule.rounds,
        mean=mean(told.dice for told in sites.values()),
        worst=worst(told.dice for told in sites.values()),
        sites=sites,
        failed=outcome.failed,
        single=single,
        epsilon=_epsilon(options, state, outcome),
        is_news=single != tuple(state.history[-1]["single"] if state.history else ()),
        seconds=desk.clock() - began,
        seconds_left=(took or desk.clock() - began) * (options.schedule.rounds - now),
        is_best=BEST in models,
    )
    entry = asdict(done)
    del entry["seconds_left"], entry["is_news"]  # a guess of this process, and what the round before tells
    new = replace(
        new,
        round=now,
        network=network,
        optimiser=optimiser,
        kept={**state.kept, **dict.fromkeys(outcome.answers, now)},
        learnt=learnt_with(state.learnt, state.roster, outcome.answers.keys()),
        history=(*state.history, entry),
        final={name: told for name, told in new.final.items() if name != CROSS},
    )
    models = {**models, LAST: (network, as_saved(new, options))}
    commit(desk.folder, new, {**models, **site_models(state, outcome.answers, all_parts, options)})
    keep(desk.folder, now, options.schedule.keep_rounds)
    desk.on_event(done)
    return new


def _of_usual_length(
    desk: Desk, state: State, outcome: ExchangeOutcome, all_parts: Sequence[Part], terms: Terms
) -> tuple[ExchangeOutcome, Mapping[str, Lengths]]:
    """The outcome without updates that are far longer than the others', and how long each is; under masks, as it is.

    Raises:
        FederationError: too few are left.
    """
    if desk.options.privacy.masked:
        return outcome, {}
    own = {site: lengths(from_payload(answer.tensors), all_parts) for site, answer in outcome.answers.items()}
    past = [
        (number_of(told.get("norm", 0.0)), number_of(told.get("norm_of_statistics", 0.0)))
        for entry in state.history[-LOOK_BACK:]
        for told in entry["sites"].values()
    ]
    found = outliers(own, past, desk.options.aggregate.max_norm_ratio)
    reasons = {site: f"its update was refused: {why}" for site, why in found.items()}
    return withdrawn(desk, outcome, reasons, terms.least), own


def _epsilon(options: FederationOptions, state: State, outcome: ExchangeOutcome) -> float:
    """What the noise guarantees after this round, for the site that sent most: repeated rounds may be releases, too."""
    told = (int(answer.body.get("releases", 0)) for answer in outcome.answers.values())
    releases = max((state.round + 1, *told))
    before = number_of(state.history[-1].get("epsilon")) if state.history else 0.0
    return max(epsilon(options.privacy.noise, releases, options.privacy.delta), before)


def _pass_on(desk: Desk, now: int, outcome: ExchangeOutcome, combination: Mean) -> None:
    """Tell what sites have to say, and what was done to their updates."""
    tell_events(desk, now, outcome)
    for site in combination.scaled:
        longest = desk.options.aggregate.max_update_norm
        desk.note(now, f"its update was longer than {longest} and scaled down.", site)


def _tasks(desk: Desk, state: State) -> dict[str, SiteTask]:
    """The task of each site in the next round."""
    options, roster = desk.options, state.roster
    tensors = to_payload(state.network, options.privacy.payload)
    body: dict[str, Any] = {
        "info": info_of(state).to_json(),
        "personal_parts": list(personal_parts(roster, options)),
        "steps_done": state.round * options.local.steps,
    }
    if options.privacy.masked:
        body["keys"] = {site: info.public_key for site, info in roster.sites.items()}
        body["holders"] = {group: list(names) for group, names in roster.holders.items()}
    if state.course:  # rounds of an earlier course are no answers to this one
        body["course"] = state.course
    weights = masked_weights(state, options)
    tasks = {}
    for site in roster.sites:
        hold = {best.kept.get(site, best.round) for best in (state.mean, state.worst)}
        hold |= rounds_to_hold(desk.folder, site)
        own: dict[str, Any] = {"kept": state.kept.get(site, 0), "hold": sorted(hold - {-1, 0})}
        if options.privacy.masked:
            own["weight"] = weights[site]
        tasks[site] = desk.task(ROUND, state.round + 1, tensors, **body, **own)
    return tasks


def _site_round(answer: Answer, outcome: ExchangeOutcome, long: Lengths | None) -> SiteRound:
    told, came = answer.body["metrics"], outcome.came[answer.site]
    validation = validation_of(answer)
    return SiteRound(
        dice=mean(validation.values()),
        validation=validation,
        loss=number_of(told.get("loss")),
        num_cases=int(answer.body.get("num_cases", 0)),
        sent=came.sent,
        received=came.received,
        seconds=number_of(answer.body.get("seconds", {}).get("total")),
        norm=long[0] if long else math.nan,
        norm_of_statistics=long[1] if long else math.nan,
    )
