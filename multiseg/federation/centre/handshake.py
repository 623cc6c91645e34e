"""What comes before the first round: all sites are there and fit, and the weights to begin or to go on with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.centre import scope
from multiseg.federation.centre.exchange import Desk, SetAsideError, exchange, tell_events
from multiseg.federation.centre.experiment_folder import Best, State, read_fingerprint, save_fingerprint
from multiseg.federation.centre.scope import check_personal
from multiseg.federation.centre.site_roster import Roster, enrolled, site_info, warnings
from multiseg.federation.messages import DESCRIBE, FINGERPRINT, Answer
from multiseg.models.builders import build
from multiseg.models.saved import ModelInfo


def handshake(desk: Desk, held: State | None) -> State:
    """The state to begin or to go on with, once every site has said what it brings.

    A run waits for all of its sites as long as it takes. One that goes on knows them already, and waits for the
    others than its quorum only as long as a round does. With a quorum a site whose description is none is set aside.

    Raises:
        SetAsideError: such sites, where a quorum is left.
        FederationError: sites that do not fit, each with its reasons.
        UsageError: a setting does not fit the network.
    """
    options = desk.options
    names = (*options.sites, *options.held_out)
    known = {**held.roster.sites, **held.roster.held_out} if held else {}
    terms = desk.terms(_why_no_description)
    if not known.keys() >= set(names):
        terms = replace(terms, least=options.schedule.quorum or len(names), deadline_s=math.inf)
    number = held.round if held else 0
    outcome = exchange(desk, {name: desk.task(DESCRIBE, number) for name in names}, terms)
    answers = outcome.answers
    if unknown := {name: why for name, why in outcome.failed.items() if name not in known}:
        raise SetAsideError(unknown)
    infos = {**known, **{name: site_info(answer) for name, answer in answers.items()}}
    roster = enrolled(infos, options, held.roster.info if held else None)
    check_personal(roster.parts, options)
    for text in (*warnings(roster, options), *scope.warnings(roster, options)):
        desk.note(number, text)
    if options.privacy.fingerprint and not read_fingerprint(desk.folder).keys() >= set(options.sites):
        _take_fingerprint(desk, roster)
    return _going_on(desk, held, roster) if held else State(0, roster, fresh(roster.info, options.seed))


def fresh(info: ModelInfo, seed: int) -> dict[str, Tensor]:
    """The weights that a run begins with, by tensor name; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(info.builder, len(info.axis), info.space.num_logits, **info.numbers)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def grown(network: Mapping[str, Tensor], info: ModelInfo, seed: int) -> dict[str, Tensor]:
    """The weights of a network of more sequences: what there was comes first along every side, the rest is fresh."""
    new = fresh(info, seed)
    for name, tensor in network.items():
        new[name][tuple(slice(n) for n in tensor.shape)] = tensor
    return new


def _why_no_description(answer: Answer) -> str:
    try:
        site_info(answer)
    except FederationError as error:
        return str(error)
    return ""


def _take_fingerprint(desk: Desk, roster: Roster) -> None:
    tasks = {name: desk.task(FINGERPRINT, 0, least=desk.options.privacy.least) for name in desk.options.sites}
    outcome = exchange(desk, tasks, replace(desk.terms(), described=roster.described))
    tell_events(desk, 0, outcome)
    save_fingerprint(desk.folder, {name: dict(answer.body) for name, answer in outcome.answers.items()})


def _going_on(desk: Desk, held: State, roster: Roster) -> State:
    """The state for a roster that may have changed since."""
    before, now = set(held.roster.sites), set(roster.sites)
    network, scored = held.network, held.scored
    if roster.info.axis != held.roster.info.axis:
        network, scored = grown(network, roster.info, desk.options.seed), -1
        new = [name for name in roster.info.axis if name not in held.roster.info.axis]
        desk.note(held.round, f"the network grows a channel for {', '.join(new)}.")
    state = replace(held, roster=roster, network=network, scored=scored)
    if state.round < desk.options.schedule.rounds:
        state = replace(state, final={})
    if before == now:
        return state
    text = f"joined: {', '.join(sorted(now - before)) or 'none'}; left: {', '.join(sorted(before - now)) or 'none'}"
    desk.note(held.round, f"{text}. Scores over other sites do not compare, so the best model is chosen again.")
    if now - before and state.round >= desk.options.schedule.rounds:
        late = ", ".join(sorted(now - before))
        desk.note(held.round, f"all rounds are done: {late} will test the model, and it learns nothing of {late}.")
    return replace(state, mean=Best(), worst=Best(), scored=-1, final={})
