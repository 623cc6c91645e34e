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
from multiseg.federation.centre.combine import Lengths, combined, masked_weights, refuse_outliers, why_refused
from multiseg.federation.centre.crosswise import CROSS, all_models_offered, site_models
from multiseg.federation.centre.earlier import keep, rounds_to_hold
from multiseg.federation.centre.exchange import Desk, ExchangeOutcome, Link, SetAsideError, exchange, note_events
from multiseg.federation.centre.experiment_folder import State, claimed, commit, opened
from multiseg.federation.centre.handshake import handshake
from multiseg.federation.centre.run_events import Began, Event, Left, RoundDone, SiteRound
from multiseg.federation.centre.run_logs import RunLogs, busy_with
from multiseg.federation.centre.scope import learnt_with
from multiseg.federation.centre.scores import as_saved, finish, info_of, is_unfinished, mean, scored, worst
from multiseg.federation.centre.site_answers import number_of, validation_of
from multiseg.federation.centre.site_roster import personal_parts, trains
from multiseg.federation.messages import ROUND, Answer, SiteTask
from multiseg.federation.plan import FederationOptions, check, without
from multiseg.federation.privacy import epsilon, to_payload
from multiseg.models.saved import BEST, LAST


@dataclass(frozen=True)
class RunResult:
    """How a run ended: rounds done, whether that is all of them, and its best model by the mean over the sites.

    Attributes:
        history: one entry per round, see `run_events.RoundDone`.
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
        return dict(self.final.get("test", {}))


def run(
    options: FederationOptions,
    link: Link,
    folder: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> RunResult:
    """Run all rounds that are not done yet, resuming from `folder`.

    Raises:
        UsageError: the settings are invalid, or differ from those of the run in the folder.
        FederationError: a site does not fit, or a round cannot be completed. Finished rounds are saved.
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
                state, options = _run_without_lost(desk, state)
            except StoppedError:
                state = opened(folder)
    if state is None:
        return RunResult(folder, 0, False, math.nan, -1)
    finished, best = "test" in state.final and all_models_offered(folder, state, options), state.mean
    return RunResult(folder, state.round, finished, best.score, best.round, state.history, state.final)


def _run_without_lost(desk: Desk, stored: State | None) -> tuple[State, FederationOptions]:
    """Run all rounds, continuing without sites that are lost; the final state, and the settings without these sites."""
    while True:
        try:
            return _run_rounds(desk, stored), desk.options
        except SetAsideError as lost:
            stored = opened(desk.folder)
            desk = _set_aside(desk, lost.reasons, stored.round if stored else 0)


def _set_aside(desk: Desk, reasons: Mapping[str, str], number: int) -> Desk:
    """The desk for the run without these sites; FederationError if too few are left."""
    try:
        fewer = without(desk.options, reasons)
    except UsageError as error:
        listed = "; ".join(f"{site}: {why.removesuffix('.')}" for site, why in reasons.items())
        raise FederationError(
            f"the run cannot continue without these sites. {listed}. {error} All finished rounds are saved."
        ) from error
    for site, why in reasons.items():
        desk.on_event(Left(number, site, why))
    return replace(desk, options=fewer)


def _run_rounds(desk: Desk, stored: State | None) -> State:
    if stored is not None and not is_unfinished(desk.folder, stored, desk.options):
        return stored
    state = handshake(desk, stored)
    began, first = desk.clock(), state.round
    while state.round < desk.options.schedule.rounds:
        took = (desk.clock() - began) / (state.round - first) if state.round > first else 0.0
        state = _round(desk, state, took)
    return finish(desk, state)


def _round(desk: Desk, state: State, took: float) -> State:
    """Ask all sites, combine their updates, save. `took`: seconds per round so far; 0 before the first."""
    now, options, began = state.round + 1, desk.options, desk.clock()
    all_parts = state.roster.parts
    desk.on_event(Began(now, options.schedule.rounds, tuple(state.roster.sites)))
    trained = {site: trains(site, state.roster, options) for site in state.roster.sites}
    described, refuse = state.roster.described, lambda answer: why_refused(answer, trained[answer.site], options)
    terms = desk.terms(described=described, refuse=refuse)
    allow_answers(desk.folder, sum(tensor.numel() for tensor in state.network.values()))
    outcome = exchange(desk, _tasks(desk, state), terms)
    outcome, norms = refuse_outliers(desk, state, outcome, terms.least)
    network, optimiser, combination = combined(state, outcome.answers, all_parts, options)
    _note_updates(desk, now, outcome, combination)
    sites = {site: _site_round(answer, outcome, norms.get(site)) for site, answer in outcome.answers.items()}
    dice = {site: result.dice for site, result in sites.items()}
    new, models = scored(desk, state, dice)
    single = tuple(name for name, names in combination.contributors.items() if len(names) == 1)
    done = RoundDone(
        now,
        options.schedule.rounds,
        mean=mean(dice.values()),
        worst=worst(dice.values()),
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
    del entry["seconds_left"], entry["is_news"]  # an estimate of this process, and what follows from the round before
    new = replace(
        new,
        round=now,
        network=network,
        optimiser=optimiser,
        kept={**state.kept, **dict.fromkeys(outcome.answers, now)},
        learnt=learnt_with(state.learnt, state.roster, outcome.answers.keys()),
        history=(*state.history, entry),
        final={name: scores for name, scores in new.final.items() if name != CROSS},
    )
    models = {**models, LAST: (network, as_saved(new, options))}
    commit(desk.folder, new, {**models, **site_models(state, outcome.answers, all_parts, options)})
    keep(desk.folder, now, options.schedule.keep_rounds)
    desk.on_event(done)
    return new


def _epsilon(options: FederationOptions, state: State, outcome: ExchangeOutcome) -> float:
    """The guarantee of the noise after this round, for the site with most releases: repeated rounds may count, too."""
    releases = max(state.round + 1, *(int(answer.body.get("releases", 0)) for answer in outcome.answers.values()))
    before = number_of(state.history[-1].get("epsilon")) if state.history else 0.0
    return max(epsilon(options.privacy.noise, releases, options.privacy.delta), before)


def _note_updates(desk: Desk, now: int, outcome: ExchangeOutcome, combination: Mean) -> None:
    """Pass on the sites' notes, and say which updates were scaled down."""
    note_events(desk, now, outcome)
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
    if state.course:  # so that a site does not answer with a round of an earlier course
        body["course"] = state.course
    weights = masked_weights(state, options)
    tasks = {}
    for site in roster.sites:
        rounds_to_keep = {best.kept.get(site, best.round) for best in (state.mean, state.worst)}
        rounds_to_keep |= rounds_to_hold(desk.folder, site)
        site_body: dict[str, Any] = {"kept": state.kept.get(site, 0), "hold": sorted(rounds_to_keep - {-1, 0})}
        if options.privacy.masked:
            site_body["weight"] = weights[site]
        tasks[site] = desk.task(ROUND, state.round + 1, tensors, **body, **site_body)
    return tasks


def _site_round(answer: Answer, outcome: ExchangeOutcome, norms: Lengths | None) -> SiteRound:
    came = outcome.came[answer.site]
    validation = validation_of(answer)
    return SiteRound(
        dice=mean(validation.values()),
        validation=validation,
        loss=number_of(answer.body["metrics"].get("loss")),
        num_cases=int(answer.body.get("num_cases", 0)),
        sent=came.sent,
        received=came.received,
        seconds=number_of(answer.body.get("seconds", {}).get("total")),
        norm=norms[0] if norms else math.nan,
        norm_of_statistics=norms[1] if norms else math.nan,
    )
